//! Compiled code, kept by the host for the next run.
//!
//! Native code from a file is as good as running that file, and wasmtime's `deserialize` is `unsafe` for that reason:
//! it trusts its input completely. This module is the only place in the workspace that calls it, and the only one that
//! may use `unsafe`. Its promise: bytes reach `deserialize` only if this program, running as this user, wrote them.
//! Three things stand behind that:
//!
//! 1. The directory and every file in it belong to the user we run as, nobody else can write the directory or read or
//!    write the files, and symbolic links are not followed. Otherwise the cache is not used at all.
//! 2. Every file begins with a keyed BLAKE3 over its name and all that follows, with a random key that is made with the
//!    directory and stored in it with mode 0600. A torn, flipped, truncated, renamed or foreign file does not match.
//! 3. The name is made of the SHA-256 of the wasm and the hash of the engine's version, settings and target, so code is
//!    never run for another file or by another engine. wasmtime compares the latter again.
//!
//! Whoever can write as our user gains nothing here: they could replace the program itself. A file that fails a check
//! is compiled anew and replaced; the cache can never make a run fail. Files given as plugins never come here: what is
//! not a WebAssembly component by its first bytes is refused before.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

const KEY: &str = "key";
const MAC_BYTES: usize = 32;
/// No compiled component of allowed size comes near.
const MOST: u64 = 512 * 1024 * 1024;

pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; 32],
    engine: String,
}

/// Feeds a `Hash` into SHA-256, since the standard hasher's 64 bits are no identity.
struct IntoSha(Sha256);

impl Hasher for IntoSha {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

fn refuse(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, what.into())
}

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Opens a file of ours for reading; anything about it that others could have arranged is an error.
fn open_own(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != own() || meta.mode() & 0o077 != 0 || meta.len() > MOST {
        return Err(refuse(format!("{}: not a private file of ours", path.display())));
    }
    Ok(file)
}

impl Cache {
    /// Opens the cache, making it if it is not there.
    pub(crate) fn open(dir: &Path, engine: &wasmtime::Engine) -> io::Result<Cache> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let meta = fs::symlink_metadata(dir)?;
        if !meta.is_dir() || meta.uid() != own() || meta.mode() & 0o022 != 0 {
            return Err(refuse(format!(
                "{}: must be a directory of the user essrun runs as, writable by nobody else",
                dir.display()
            )));
        }
        let path = dir.join(KEY);
        if fs::symlink_metadata(&path).is_err() {
            // Written aside and linked, so that another run never sees half a key.
            let fresh: [u8; 32] = rand::random();
            let aside = write_aside(dir, &[&fresh])?;
            let linked = fs::hard_link(&aside, &path);
            fs::remove_file(&aside)?;
            match linked {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        let mut key = [0u8; 32];
        open_own(&path)?.read_exact(&mut key)?;
        let mut hasher = IntoSha(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine = hex::encode(hasher.0.finalize().get(..8).unwrap_or_default());
        Ok(Cache {
            dir: dir.to_owned(),
            key,
            engine,
        })
    }

    fn name(&self, wasm_sha256: &str) -> String {
        format!("{wasm_sha256}-{}.native", self.engine)
    }

    fn mac(&self, name: &str, code: &[u8]) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(&self.key);
        mac.update(&(name.len() as u64).to_le_bytes());
        mac.update(name.as_bytes());
        mac.update(code);
        mac.finalize()
    }

    /// The compiled form of this wasm, if we kept it.
    pub(crate) fn get(&self, engine: &wasmtime::Engine, wasm_sha256: &str) -> Option<Component> {
        let name = self.name(wasm_sha256);
        match self.read(&name) {
            Ok(code) => match deserialize(engine, &code) {
                Ok(component) => Some(component),
                Err(e) => {
                    tracing::debug!(%e, name, "kept code does not fit this engine; compiling anew");
                    None
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!(%e, name, "kept code is not used; compiling anew");
                None
            }
        }
    }

    fn read(&self, name: &str) -> io::Result<Authentic> {
        let mut bytes = Vec::new();
        open_own(&self.dir.join(name))?.take(MOST).read_to_end(&mut bytes)?;
        let (mac, code) = bytes
            .split_at_checked(MAC_BYTES)
            .ok_or_else(|| refuse("the file is cut short"))?;
        let mac: [u8; MAC_BYTES] = mac.try_into().map_err(|_| refuse("the file is cut short"))?;
        // Comparison of blake3::Hash is in constant time.
        if self.mac(name, code) != blake3::Hash::from_bytes(mac) {
            return Err(refuse("the file was changed, or is not from here"));
        }
        Ok(Authentic(bytes))
    }

    /// Keeps compiled code. Failing to is no failure of the run.
    pub(crate) fn put(&self, wasm_sha256: &str, component: &Component) {
        let name = self.name(wasm_sha256);
        let kept = component
            .serialize()
            .map_err(|e| io::Error::other(e.to_string()))
            .and_then(|code| {
                let aside = write_aside(&self.dir, &[self.mac(&name, &code).as_bytes(), &code])?;
                fs::rename(&aside, self.dir.join(&name))
            });
        if let Err(e) = kept {
            tracing::warn!(%e, name, "compiled code could not be kept; the next run compiles again");
        }
    }
}

/// Bytes of a cache file whose authenticity was checked; nothing else makes one.
struct Authentic(Vec<u8>);

#[allow(unsafe_code)]
fn deserialize(engine: &wasmtime::Engine, code: &Authentic) -> wasmtime::Result<Component> {
    let code = code.0.get(MAC_BYTES..).unwrap_or_default();
    // SAFETY: the contract of `deserialize` is that the bytes were produced by wasmtime's own `serialize` and not
    // changed since. `Authentic` is made only by `Cache::read`, after the checks in this module's essay; the copy in
    // memory is ours alone, so nobody changes it between check and use.
    unsafe { Component::deserialize(engine, code) }
}

/// Writes a private file beside its place; the caller gives it its name.
fn write_aside(dir: &Path, parts: &[&[u8]]) -> io::Result<PathBuf> {
    let path = dir.join(format!(".new-{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    for part in parts {
        if let Err(e) = file.write_all(part) {
            fs::remove_file(&path)?;
            return Err(e);
        }
    }
    Ok(path)
}
