//! Directory entries with their back-pointers, always written together.

use dfs_proto::{Code, Failure, FileKind, Ino, Name};

use super::{Context, inode};
use crate::store::keys;
use crate::store::records::{Dentry, Inode, Marker};

/// Loads a directory that may get entries: ENOENT when it was removed (and is only still open somewhere).
pub(super) fn load_living(cx: &mut Context<'_, '_>, ino: Ino) -> Result<Inode, Failure> {
    let directory = inode::load_directory(cx, ino)?;
    match directory.nlink {
        0 => Err(Failure::new(Code::NotFound, format!("directory {ino} was removed"))),
        _ => Ok(directory),
    }
}

/// What a name in a directory names.
pub(super) fn find(
    cx: &mut Context<'_, '_>,
    parent: Ino,
    name: &Name,
) -> Result<Option<(Ino, FileKind)>, Failure> {
    let dentry = cx.tx.get::<Dentry>(&keys::dentry(parent, name))?;
    Ok(dentry.map(|dentry| (Ino(dentry.ino), dentry.kind())))
}

/// The same, ENOENT when there is no such name.
pub(super) fn get(cx: &mut Context<'_, '_>, parent: Ino, name: &Name) -> Result<(Ino, FileKind), Failure> {
    let missing = || Failure::new(Code::NotFound, format!("no {name} in directory {parent}"));
    find(cx, parent, name)?.ok_or_else(missing)
}

/// That a name is taken: EEXIST.
pub(super) fn taken(parent: Ino, name: &Name) -> Failure {
    Failure::new(Code::Exists, format!("{name} is there already in directory {parent}"))
}

/// Adds an entry, or points one that is there to another inode; then the old inode's entry is removed first.
pub(super) fn add(cx: &mut Context<'_, '_>, parent: Ino, name: &Name, ino: Ino, kind: FileKind) {
    cx.tx.put(keys::dentry(parent, name), &Dentry { ino: ino.0, kind: kind.into() });
    cx.tx.put(keys::back_pointer(ino, parent, name), &Marker {});
}

/// Removes the entry by which `parent` names `ino`.
pub(super) fn remove(cx: &mut Context<'_, '_>, parent: Ino, name: &Name, ino: Ino) {
    cx.tx.delete(keys::dentry(parent, name));
    cx.tx.delete(keys::back_pointer(ino, parent, name));
}

/// ENOTEMPTY when a directory has entries.
pub(super) fn check_empty(cx: &mut Context<'_, '_>, ino: Ino) -> Result<(), Failure> {
    match cx.tx.is_empty(&keys::dentries_after(ino, 0))? {
        true => Ok(()),
        false => Err(Failure::new(Code::NotEmpty, format!("directory {ino} is not empty"))),
    }
}

/// Counts a subdirectory more. EMLINK when there are too many to count.
pub(super) fn add_subdirectory(directory: &mut Inode) -> Result<(), Failure> {
    let full = || Failure::new(Code::TooManyLinks, "the directory cannot have more subdirectories");
    directory.nlink = directory.nlink.checked_add(1).ok_or_else(full)?;
    Ok(())
}
