//! Where keys come from: files of their own, or a directory of files named after them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dfs_proto::class::check_key_name;
use dfs_proto::{Code, Failure};

use super::master::{self, Secret};

/// The longest file with a key or a passphrase, in bytes.
const MAX_SECRET: usize = 4096;
/// Permission bits that a file with a secret must not have: those of the group and of others.
const TOO_OPEN: u32 = 0o077;

/// The permissions of a file with a secret that is made here.
const SECRET_MODE: u32 = 0o600;

/// Which keys a mount is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFiles {
    /// By name. Each must be there, and the right one.
    pub files: BTreeMap<String, PathBuf>,
    /// A directory with files named after the keys in them. What it has of others is passed over.
    pub directory: Option<PathBuf>,
}

impl KeyFiles {
    /// All files with keys, by name: those of the directory that are not given by themselves.
    pub(super) fn all(&self) -> Result<BTreeMap<String, PathBuf>, Failure> {
        let mut all = BTreeMap::new();
        if let Some(directory) = &self.directory {
            let unreadable = |error| {
                let message = format!("the key directory {} cannot be read: {error}", directory.display());
                Failure::new(Code::NoKey, message)
            };
            for entry in std::fs::read_dir(directory).map_err(unreadable)? {
                let name = entry.map_err(unreadable)?.file_name();
                if let Some(name) = name.to_str().filter(|name| check_key_name(name).is_ok()) {
                    all.insert(name.to_owned(), directory.join(name));
                }
            }
        }
        all.extend(self.files.clone());
        Ok(all)
    }
}

/// The secret in a file. NO_KEY, with what to do, when it can't be read or others than its owner could read it too.
pub fn read_secret(path: &Path) -> Result<Secret, Failure> {
    let no_key = |what: String| Failure::new(Code::NoKey, format!("the key file {}: {what}", path.display()));
    let mut file = File::open(path).map_err(|error| no_key(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| no_key(error.to_string()))?;
    if !metadata.is_file() {
        return Err(no_key("it is not a regular file".to_owned()));
    }
    if metadata.mode() & TOO_OPEN != 0 {
        return Err(no_key(format!(
            "others than its owner may use it (mode {:03o}): `chmod 600` it",
            metadata.mode() & 0o777
        )));
    }
    // One buffer, which never moves, so that no copies are left behind.
    let mut secret = Secret::new(vec![0; MAX_SECRET + 1]);
    let mut length = 0;
    while length < secret.len() {
        match file.read(&mut secret[length..]).map_err(|error| no_key(error.to_string()))? {
            0 => break,
            read => length += read,
        }
    }
    if length > MAX_SECRET {
        return Err(no_key(format!("a key or a passphrase has at most {MAX_SECRET} bytes")));
    }
    secret.truncate(length);
    Ok(secret)
}

/// A fresh key in a file of its own, which is durable when this returns, and its owner's alone. EXISTS when there is a file
/// of that name: it is left as it is.
pub fn create_secret(path: &Path) -> Result<Secret, Failure> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::AlreadyExists => Code::Exists,
            _ => Code::InputOutput,
        };
        Failure::new(code, format!("the key file {} cannot be made: {error}", path.display()))
    };
    let secret = master::fresh_secret()?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(SECRET_MODE).open(path).map_err(failed)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = file
        .write_all(&secret)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(directory)?.sync_all());
    written.map_err(|error| {
        // Nobody has used it yet, and a part of a key would be in the way of another attempt.
        let _ = std::fs::remove_file(path);
        failed(error)
    })?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        fs::write(&path, [7; 32]).unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o700, true)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_secret(&path).is_ok(), good, "{mode:o}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*read_secret(&path).unwrap(), [7; 32]);
        fs::write(&path, vec![7; MAX_SECRET + 1]).unwrap();
        assert_eq!(read_secret(&path).unwrap_err().code, Code::NoKey);
        assert!(
            read_secret(&directory.path().join("none")).is_err() && read_secret(directory.path()).is_err()
        );
    }

    #[test]
    fn a_fresh_key_is_in_a_file_that_was_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        let secret = create_secret(&path).unwrap();
        assert_eq!((secret.len(), &*read_secret(&path).unwrap()), (32, &*secret));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(create_secret(&path).unwrap_err().code, Code::Exists);
        assert_eq!(*read_secret(&path).unwrap(), *secret, "it is left as it is");
        assert_ne!(*create_secret(&directory.path().join("j")).unwrap(), *secret);
        let nowhere = create_secret(&directory.path().join("none/k")).unwrap_err();
        assert!(nowhere.code == Code::InputOutput && nowhere.message.contains("none/k"), "{nowhere}");
    }

    #[test]
    fn a_directory_has_keys_by_name() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", ".hidden", "bad name"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        let own = PathBuf::from("/elsewhere");
        let files = BTreeMap::from([("b".to_owned(), own.clone()), ("c".to_owned(), own.clone())]);
        let all = KeyFiles { files, directory: Some(directory.path().to_owned()) }.all().unwrap();
        let expected = [("a", directory.path().join("a")), ("b", own.clone()), ("c", own)];
        assert_eq!(all, expected.map(|(name, path)| (name.to_owned(), path)).into());
        let missing = KeyFiles { directory: Some("/none/there".into()), ..KeyFiles::default() };
        assert_eq!(missing.all().unwrap_err().code, Code::NoKey);
    }
}
