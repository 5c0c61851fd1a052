//! Moves a name: rename(2), and renameat2(2) with RENAME_NOREPLACE and RENAME_EXCHANGE.
//!
//! Guarantees that no directory becomes its own ancestor: the way from the target directory up to the root is walked in
//! the same operation that moves the name.

use dfs_proto::meta::{Done, Rename, RenameMode};
use dfs_proto::{Code, Failure, FileKind, Ino, Name};

use super::{Context, directory, inode, orphan};
use crate::store::keys;
use crate::store::records::Inode;

/// Directories walked upwards: nothing lies deeper but in a store that is damaged.
const MAX_DEPTH: usize = 1 << 20;

/// A name and what it names.
struct Place {
    parent: Ino,
    name: Name,
    ino: Ino,
    kind: FileKind,
}

/// EEXIST (NO_REPLACE), EINVAL (into itself), EISDIR, EMLINK, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY; ESTALE when a
/// directory is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Rename) -> Result<Done, Failure> {
    let mode = RenameMode::try_from(request.mode)
        .map_err(|_| Failure::new(Code::Invalid, format!("rename mode {} is not known", request.mode)))?;
    let name = Name::parse(request.name.clone())?;
    let new_name = Name::parse(request.new_name.clone())?;
    let (parent, new_parent) = (Ino(request.parent), Ino(request.new_parent));
    let directory = inode::load_directory(cx, parent)?;
    let new_directory = directory::load_living(cx, new_parent)?;
    let (ino, kind) = directory::get(cx, parent, &name)?;
    let source = Place { parent, name, ino, kind };
    let target = match directory::find(cx, new_parent, &new_name)? {
        Some(_) if mode == RenameMode::NoReplace => return Err(directory::taken(new_parent, &new_name)),
        Some((ino, kind)) => Some(Place { parent: new_parent, name: new_name.clone(), ino, kind }),
        None if mode == RenameMode::Exchange => {
            let message = format!("no {new_name} in directory {new_parent} to exchange");
            return Err(Failure::new(Code::NotFound, message));
        }
        None => None,
    };
    check_ancestors(cx, &source, new_parent)?;
    if let (Some(target), RenameMode::Exchange) = (&target, mode) {
        check_ancestors(cx, target, parent)?;
    }
    if target.as_ref().is_some_and(|target| target.ino == source.ino) {
        // Two names of one file: rename(2) does nothing.
        return Ok(Done {});
    }
    let mut parents = Parents::new(parent, directory, new_parent, new_directory);
    match (target, mode) {
        (Some(target), RenameMode::Exchange) => exchange(cx, &mut parents, &source, &target)?,
        (target, _) => {
            if let Some(target) = target {
                replace(cx, &mut parents, &source, target)?;
            }
            directory::remove(cx, source.parent, &source.name, source.ino);
            put_under(cx, &mut parents, &source, new_parent, &new_name)?;
        }
    }
    parents.save(cx);
    Ok(Done {})
}

/// EINVAL when the directory at `place` is `below` or above it.
fn check_ancestors(cx: &mut Context<'_, '_>, place: &Place, below: Ino) -> Result<(), Failure> {
    if place.kind != FileKind::Directory || place.parent == below {
        return Ok(());
    }
    let inside = || {
        let message = format!("directory {} cannot be moved into itself", place.name);
        Err(Failure::new(Code::Invalid, message))
    };
    if place.ino == below {
        return inside();
    }
    if inode::load(cx, place.ino)?.nlink == 2 {
        // No subdirectories: it is above nothing.
        return Ok(());
    }
    let mut at = below;
    for _ in 0..MAX_DEPTH {
        if at == Ino::ROOT {
            return Ok(());
        }
        at = Ino(inode::load_directory(cx, at)?.parent);
        if at == place.ino {
            return inside();
        }
    }
    Err(Failure::new(Code::Loop, format!("directory {below} lies more than {MAX_DEPTH} directories deep")))
}

/// Checks that `source` may take the place of `target`, and removes the target.
fn replace(
    cx: &mut Context<'_, '_>,
    parents: &mut Parents,
    source: &Place,
    target: Place,
) -> Result<(), Failure> {
    let name = &target.name;
    match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
        (true, false) => {
            return Err(Failure::new(Code::NotADirectory, format!("{name} is there and not a directory")));
        }
        (false, true) => {
            return Err(Failure::new(Code::IsADirectory, format!("{name} is there and a directory")));
        }
        (true, true) => {
            directory::check_empty(cx, target.ino)?;
            parents.at(target.parent).nlink -= 1;
        }
        (false, false) => {}
    }
    directory::remove(cx, target.parent, name, target.ino);
    let replaced = inode::load(cx, target.ino)?;
    orphan::drop_link(cx, target.ino, replaced)
}

fn exchange(
    cx: &mut Context<'_, '_>,
    parents: &mut Parents,
    source: &Place,
    target: &Place,
) -> Result<(), Failure> {
    directory::remove(cx, source.parent, &source.name, source.ino);
    directory::remove(cx, target.parent, &target.name, target.ino);
    put_under(cx, parents, source, target.parent, &target.name)?;
    put_under(cx, parents, target, source.parent, &source.name)
}

/// Names the inode at `place` anew; its old name is removed by the caller. Its ctime changes, as on most filesystems.
fn put_under(
    cx: &mut Context<'_, '_>,
    parents: &mut Parents,
    place: &Place,
    parent: Ino,
    name: &Name,
) -> Result<(), Failure> {
    directory::add(cx, parent, name, place.ino, place.kind);
    let mut moved = inode::load(cx, place.ino)?;
    if place.kind == FileKind::Directory && parent != place.parent {
        moved.parent = parent.0;
        parents.at(place.parent).nlink -= 1;
        directory::add_subdirectory(parents.at(parent))?;
    }
    inode::changed(&mut moved, cx.now);
    inode::save(cx, place.ino, &moved);
    Ok(())
}

/// The one or two directories that change.
struct Parents {
    first: (Ino, Inode),
    second: Option<(Ino, Inode)>,
}

impl Parents {
    fn new(first: Ino, first_inode: Inode, second: Ino, second_inode: Inode) -> Self {
        let second = (first != second).then_some((second, second_inode));
        Self { first: (first, first_inode), second }
    }

    fn at(&mut self, ino: Ino) -> &mut Inode {
        match &mut self.second {
            Some((second, inode)) if *second == ino => inode,
            _ => &mut self.first.1,
        }
    }

    fn save(self, cx: &mut Context<'_, '_>) {
        for (ino, mut directory) in std::iter::once(self.first).chain(self.second) {
            inode::contents_changed(&mut directory, cx.now);
            cx.tx.put(keys::inode(ino), &directory);
        }
    }
}

#[cfg(test)]
mod tests;
