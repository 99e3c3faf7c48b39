//! Reads the ways a libpq connection can be written: URI, keywords, service file, password file.
//!
//! The result is a plain map of libpq's parameter names; what they mean is decided one level up. Everything here may
//! hold a secret, so errors name parameters and positions, never values.

use std::collections::BTreeMap;
use std::path::Path;

pub(super) type Params = BTreeMap<String, String>;

/// Why a text is no connection; free of secrets.
pub(super) type Problem = String;

pub(super) fn parse(text: &str) -> Result<Params, Problem> {
    let text = text.trim();
    if let Some(rest) = text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
    {
        uri(rest)
    } else {
        keywords(text)
    }
}

fn uri(rest: &str) -> Result<Params, Problem> {
    let mut params = Params::new();
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, database) = match rest.split_once('/') {
        Some((authority, database)) => (authority, Some(database)),
        None => (rest, None),
    };
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (Some(user), hosts),
        None => (None, authority),
    };
    if let Some(user) = user {
        let (user, password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user, None),
        };
        if !user.is_empty() {
            params.insert("user".into(), unescape(user, "the user")?);
        }
        if let Some(password) = password {
            params.insert("password".into(), unescape(password, "the password")?);
        }
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = if let Some(v6) = host.strip_prefix('[') {
            let (name, after) = v6.split_once(']').ok_or("an IPv6 address has no closing bracket")?;
            (name, after.strip_prefix(':').unwrap_or(""))
        } else {
            host.rsplit_once(':').unwrap_or((host, ""))
        };
        names.push(unescape(name, "the host")?);
        ports.push(port.to_owned());
    }
    if names.iter().any(|n| !n.is_empty()) {
        params.insert("host".into(), names.join(","));
    }
    if ports.iter().any(|p| !p.is_empty()) {
        params.insert("port".into(), ports.join(","));
    }
    if let Some(database) = database.filter(|d| !d.is_empty()) {
        params.insert("dbname".into(), unescape(database, "the database")?);
    }
    for pair in query.into_iter().flat_map(|q| q.split('&')).filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("a parameter of the URI has no value")?;
        let name = unescape(name, "a parameter's name")?;
        let value = unescape(value, &format!("`{name}`"))?;
        params.insert(name, value);
    }
    Ok(params)
}

fn unescape(text: &str, what: &str) -> Result<String, Problem> {
    let bad = || format!("{what} has a percent sign that is not followed by two hexadecimal digits");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
                return Err(bad());
            };
            out.push(u8::try_from(high * 16 + low).map_err(|_| bad())?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).map_err(|_| format!("{what} is not UTF-8 after unescaping"))
}

/// `host=… dbname='with space' password=it\'s`
fn keywords(text: &str) -> Result<Params, Problem> {
    let mut params = Params::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(params);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let plausible = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if chars.next() != Some('=') || !plausible {
            // The word itself may be a secret put in the wrong place: it is not shown.
            return Err(format!(
                "word {} is not `parameter=value`, and the text does not begin with postgresql://",
                params.len() + 1
            ));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        if chars.next_if_eq(&'\'').is_some() {
            loop {
                match chars.next() {
                    Some('\'') => break,
                    Some('\\') => value.extend(chars.next()),
                    Some(c) => value.push(c),
                    None => return Err(format!("the quoted value of `{name}` does not end")),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                match c {
                    '\\' => value.extend(chars.next()),
                    c => value.push(c),
                }
            }
        }
        params.insert(name, value);
    }
}

/// The section `[service]` of a pg_service.conf.
pub(super) fn service(file: &str, service: &str) -> Option<Params> {
    let mut found = None::<Params>;
    let mut inside = false;
    for line in file.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name == service && found.is_none();
            if inside {
                found = Some(Params::new());
            }
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && let Some(params) = &mut found
        {
            params.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    found
}

/// The password of a passfile's first line that fits: `host:port:database:user:password`, `*` for any.
pub(super) fn passfile(path: &Path, host: &str, port: &str, database: &str, user: &str) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(path).ok()?;
    // libpq ignores a password file others can read; so do we.
    if !meta.is_file() || meta.permissions().mode() & 0o077 != 0 {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().filter(|l| !l.starts_with('#')).find_map(|line| {
        let mut fields = vec![String::new()];
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            if c == ':' && fields.len() < 5 {
                fields.push(String::new());
                continue;
            }
            let field = fields.last_mut()?;
            match c {
                '\\' => field.extend(chars.next()),
                c => field.push(c),
            }
        }
        let fits = fields
            .iter()
            .zip([host, port, database, user])
            .all(|(field, want)| field == "*" || field == want);
        (fields.len() == 5 && fits).then(|| fields.pop()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get<'a>(p: &'a Params, name: &str) -> &'a str {
        p.get(name).map_or("", String::as_str)
    }

    #[test]
    fn uris() {
        let p = parse("postgresql://us%40er:p%3Aw@h1:5433,h2/da%2Ftabase?sslmode=disable&host=%2Ftmp").unwrap();
        assert_eq!(get(&p, "user"), "us@er");
        assert_eq!(get(&p, "password"), "p:w");
        assert_eq!(get(&p, "host"), "/tmp");
        assert_eq!(get(&p, "port"), "5433,");
        assert_eq!(get(&p, "dbname"), "da/tabase");
        assert_eq!(get(&p, "sslmode"), "disable");
        let p = parse("postgres://[::1]:7/x").unwrap();
        assert_eq!((get(&p, "host"), get(&p, "port"), get(&p, "dbname")), ("::1", "7", "x"));
        assert!(parse("postgresql:///").unwrap().is_empty());
        for bad in ["postgresql://%zz@h/", "postgresql://[::1/x", "postgresql://h/x?novalue"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keywords_and_quotes() {
        let p = parse(r"host = '/tmp/a b' password='it\'s \\' user=a\ b dbname=''").unwrap();
        assert_eq!(get(&p, "host"), "/tmp/a b");
        assert_eq!(get(&p, "password"), r"it's \");
        assert_eq!(get(&p, "user"), "a b");
        assert_eq!(get(&p, "dbname"), "");
        for bad in ["hunter2", "password='open", "Pass Word=x", "=x"] {
            let error = parse(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn services_and_passfiles() {
        let file = "# c\n[a]\nhost=x\n[b]\nhost=y\nport = 7\n";
        assert_eq!(get(&service(file, "b").unwrap(), "port"), "7");
        assert!(service(file, "c").is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        std::fs::write(&path, "h:1:d:u:first\n*:*:*:u:se\\:cond:x\n").unwrap();
        assert_eq!(passfile(&path, "h", "1", "d", "u"), None, "readable by others");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(passfile(&path, "h", "1", "d", "u").as_deref(), Some("first"));
        assert_eq!(passfile(&path, "h", "2", "d", "u").as_deref(), Some("se:cond:x"));
        assert_eq!(passfile(&path, "h", "2", "d", "w"), None);
    }
}
