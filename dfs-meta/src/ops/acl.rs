//! POSIX access control lists: their bytes in extended attributes (version 2, as in linux/posix_acl_xattr.h), and what
//! they do to modes. Pure arithmetic, after the kernel's fs/posix_acl.c; the kernel also checks permissions with them.

use dfs_proto::{Code, Failure, Ino};

use super::{Context, xattrs};
use crate::store::records::Inode;

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
const NO_ID: u32 = u32::MAX;

/// Whom an entry is about, in the order in which entries stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    Mask,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    /// rwx: 0..=7
    permissions: u32,
}

/// A valid list: one owner, owning group and other each, a mask where users or groups are named, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// From an attribute's value. `None`: no bytes or no entries, which means none at all. EINVAL, and EOPNOTSUPP for
    /// another version.
    pub(super) fn parse(value: &[u8]) -> Result<Option<Self>, Failure> {
        let bad = |why: &str| Failure::new(Code::Invalid, format!("not an access control list: {why}"));
        if value.is_empty() {
            return Ok(None);
        }
        let Some((version, body)) = value.split_first_chunk::<HEADER>() else {
            return Err(bad("it is too short"));
        };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Failure::new(Code::NotSupported, "only version 2 of access control lists is known"));
        }
        if !body.len().is_multiple_of(ENTRY) {
            return Err(bad("an entry is cut off"));
        }
        let mut entries = Vec::with_capacity(body.len() / ENTRY);
        for &[tag0, tag1, permissions0, permissions1, ref id @ ..] in body.as_chunks::<ENTRY>().0 {
            let id = u32::from_le_bytes(*id);
            let tag = match u16::from_le_bytes([tag0, tag1]) {
                0x01 => Tag::Owner,
                0x02 => Tag::User(id),
                0x04 => Tag::OwningGroup,
                0x08 => Tag::Group(id),
                0x10 => Tag::Mask,
                0x20 => Tag::Other,
                _ => return Err(bad("an entry of an unknown kind")),
            };
            if matches!(tag, Tag::User(NO_ID) | Tag::Group(NO_ID)) {
                return Err(bad("an entry without a user or group"));
            }
            let permissions = u32::from(u16::from_le_bytes([permissions0, permissions1]));
            if permissions > 7 {
                return Err(bad("unknown permissions"));
            }
            entries.push(Entry { tag, permissions });
        }
        if entries.is_empty() {
            return Ok(None);
        }
        match in_order(&entries) {
            true => Ok(Some(Self { entries })),
            false => Err(bad("entries are missing, doubled or out of order")),
        }
    }

    /// For an attribute's value.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER + self.entries.len() * ENTRY);
        value.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.entries {
            let (tag, id): (u16, u32) = match entry.tag {
                Tag::Owner => (0x01, NO_ID),
                Tag::User(id) => (0x02, id),
                Tag::OwningGroup => (0x04, NO_ID),
                Tag::Group(id) => (0x08, id),
                Tag::Mask => (0x10, NO_ID),
                Tag::Other => (0x20, NO_ID),
            };
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&(entry.permissions as u16).to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// The permission bits (0777) that the list shows in a mode; and whether they say all that it says.
    pub(super) fn mode(&self) -> (u32, bool) {
        let mut mode = 0;
        let mut exact = true;
        let mut mask = None;
        for entry in &self.entries {
            match entry.tag {
                Tag::Owner => mode |= entry.permissions << 6,
                Tag::OwningGroup => mode |= entry.permissions << 3,
                Tag::Other => mode |= entry.permissions,
                Tag::Mask => mask = Some(entry.permissions),
                Tag::User(_) | Tag::Group(_) => exact = false,
            }
        }
        match mask {
            Some(mask) => (mode & !0o070 | mask << 3, false),
            None => (mode, exact),
        }
    }

    /// After a chmod to these permission bits: the mask takes the group's where there is one.
    fn after_chmod(mut self, mode: u32) -> Self {
        let masked = self.has_mask();
        for entry in &mut self.entries {
            match entry.tag {
                Tag::Owner => entry.permissions = mode >> 6 & 7,
                Tag::OwningGroup if !masked => entry.permissions = mode >> 3 & 7,
                Tag::Mask => entry.permissions = mode >> 3 & 7,
                Tag::Other => entry.permissions = mode & 7,
                _ => {}
            }
        }
        self
    }

    /// What a new file made with `mode` gets where this is its directory's default: the mode's permission bits and the
    /// list take from each other what the other does not grant.
    fn for_new_file(mut self, mode: u32) -> (u32, Self) {
        let masked = self.has_mask();
        let mut left = mode;
        let mut meet = |entry: &mut Entry, shift: u32| {
            entry.permissions &= left >> shift;
            left &= entry.permissions << shift | !(7 << shift);
        };
        for entry in &mut self.entries {
            match entry.tag {
                Tag::Owner => meet(entry, 6),
                Tag::OwningGroup if !masked => meet(entry, 3),
                Tag::Mask => meet(entry, 3),
                Tag::Other => meet(entry, 0),
                _ => {}
            }
        }
        (left, self)
    }

    fn has_mask(&self) -> bool {
        self.entries.iter().any(|entry| entry.tag == Tag::Mask)
    }
}

/// owner, users, owning group, groups, mask (needed after users or groups), other.
fn in_order(entries: &[Entry]) -> bool {
    let mut rest = entries.iter().map(|entry| entry.tag).peekable();
    let owner = rest.next_if_eq(&Tag::Owner).is_some();
    let mut named = false;
    while rest.next_if(|tag| matches!(tag, Tag::User(_))).is_some() {
        named = true;
    }
    let group = rest.next_if_eq(&Tag::OwningGroup).is_some();
    while rest.next_if(|tag| matches!(tag, Tag::Group(_))).is_some() {
        named = true;
    }
    let mask = rest.next_if_eq(&Tag::Mask).is_some();
    let other = rest.next_if_eq(&Tag::Other).is_some();
    owner && group && other && (mask || !named) && rest.next().is_none()
}

/// An ACL that an inode has; a bad one was never let in.
fn load(cx: &mut Context<'_, '_>, ino: Ino, inode: &Inode, name: &[u8]) -> Result<Option<Acl>, Failure> {
    match xattrs::get(cx, ino, inode, name)? {
        Some(value) => Acl::parse(&value),
        None => Ok(None),
    }
}

/// Keeps the access ACL in step with permission bits that were just set in the inode's mode.
pub(super) fn follow_chmod(cx: &mut Context<'_, '_>, ino: Ino, inode: &mut Inode) -> Result<(), Failure> {
    if let Some(acl) = load(cx, ino, inode, xattrs::ACCESS_ACL)? {
        let mode = inode.mode;
        xattrs::put(cx, ino, inode, xattrs::ACCESS_ACL, acl.after_chmod(mode).to_bytes());
    }
    Ok(())
}

/// What a new file inherits from its directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    /// Its mode.
    pub(super) mode: u32,
    /// Its access ACL, where the mode does not say it all.
    pub(super) access: Option<Acl>,
    /// For a directory: its default ACL.
    pub(super) default: Option<Acl>,
}

/// The mode and the ACLs of a new file: its directory's default ACL decides; where there is none, the umask.
pub(super) fn inherit(
    cx: &mut Context<'_, '_>,
    parent: Ino,
    directory: &Inode,
    mode: u32,
    umask: u32,
    is_directory: bool,
) -> Result<Inherited, Failure> {
    let Some(default) = load(cx, parent, directory, xattrs::DEFAULT_ACL)? else {
        return Ok(Inherited { mode: mode & !(umask & 0o777), access: None, default: None });
    };
    let (mode, access) = default.clone().for_new_file(mode);
    let (_, exact) = access.mode();
    Ok(Inherited { mode, access: (!exact).then_some(access), default: is_directory.then_some(default) })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ACL's bytes from (tag, permissions, id).
    pub(crate) fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    const NAMED: [(u16, u16, u32); 5] =
        [(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 1, NO_ID)];
    const PLAIN: [(u16, u16, u32); 3] = [(1, 6, NO_ID), (4, 4, NO_ID), (32, 0, NO_ID)];

    #[test]
    fn lists_are_checked_and_printed_as_read() {
        for good in [&NAMED[..], &PLAIN[..]] {
            let acl = Acl::parse(&bytes(good)).unwrap().unwrap();
            assert_eq!(acl.to_bytes(), bytes(good));
        }
        assert_eq!(Acl::parse(&[]).unwrap(), None);
        assert_eq!(Acl::parse(&bytes(&[])).unwrap(), None, "no entries: no list");
        for (why, bad) in [
            ("no mask", vec![NAMED[0], NAMED[1], NAMED[2], NAMED[4]]),
            ("no other", vec![PLAIN[0], PLAIN[1]]),
            ("doubled", vec![PLAIN[0], PLAIN[0], PLAIN[1], PLAIN[2]]),
            ("out of order", vec![PLAIN[1], PLAIN[0], PLAIN[2]]),
            ("unknown permissions", vec![(1, 8, NO_ID), PLAIN[1], PLAIN[2]]),
            ("unknown tag", vec![PLAIN[0], PLAIN[1], PLAIN[2], (64, 0, NO_ID)]),
            ("nobody", vec![PLAIN[0], (2, 7, NO_ID), PLAIN[1], NAMED[3], PLAIN[2]]),
        ] {
            assert_eq!(Acl::parse(&bytes(&bad)).unwrap_err().code, Code::Invalid, "{why}");
        }
        assert_eq!(Acl::parse(&bytes(&PLAIN)[..9]).unwrap_err().code, Code::Invalid);
        assert_eq!(Acl::parse(&[2, 0]).unwrap_err().code, Code::Invalid);
        assert_eq!(Acl::parse(&[1, 0, 0, 0]).unwrap_err().code, Code::NotSupported);
    }

    #[test]
    fn the_mode_shows_the_mask_as_the_group() {
        let named = Acl::parse(&bytes(&NAMED)).unwrap().unwrap();
        assert_eq!(named.mode(), (0o771, false));
        assert_eq!(Acl::parse(&bytes(&PLAIN)).unwrap().unwrap().mode(), (0o640, true));
        let changed = named.after_chmod(0o640);
        assert_eq!(changed.mode(), (0o640, false));
        assert_eq!(changed.entries[2].permissions, 5, "the owning group's own entry stays");
    }

    #[test]
    fn new_files_get_what_both_mode_and_default_grant() {
        let named = Acl::parse(&bytes(&NAMED)).unwrap().unwrap();
        let (mode, acl) = named.for_new_file(0o4664);
        assert_eq!(mode, 0o4660, "set-id bits are left alone");
        assert_eq!(acl.mode(), (0o660, false));
        let plain = Acl::parse(&bytes(&PLAIN)).unwrap().unwrap();
        let (mode, acl) = plain.for_new_file(0o777);
        assert_eq!((mode, acl.mode()), (0o640, (0o640, true)));
    }
}
