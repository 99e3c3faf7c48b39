//! Who asks, and who owns a file: names of users, as this host knows them.

/// The user essrun was started by. Under `sudo` that is who called it: root is nobody in particular.
pub fn asking() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("SUDO_USER") {
        Ok(name) if uid == 0 && !name.is_empty() => name,
        _ => name(uid),
    }
}

/// A user's name; the number where the host knows none.
pub fn name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) => uid.to_string(),
        Err(e) => {
            tracing::warn!("the name of user {uid} is not known: {e}");
            uid.to_string()
        }
    }
}
