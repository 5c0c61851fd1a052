//! lseek(2) with SEEK_DATA and SEEK_HOLE: where data or a hole begins. The end of a file is a hole.

use dfs_proto::meta::{Offset, Seek};
use dfs_proto::{Code, Failure, Ino, limits};

use super::{Context, extents, plan};

/// Extents looked at in one call. A longer run of data without a hole is said to reach the end of the file, which
/// lseek(2) allows: a hole may always be told as data.
const MAX_LOOKED_AT: usize = 65_536;
/// Extents read at once.
const PAGE: usize = 256;

/// ENXIO when the offset is at the end or beyond, or when only a hole follows; EINVAL, EISDIR; ESTALE.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Seek) -> Result<Offset, Failure> {
    let ino = Ino(request.ino);
    let inode = plan::load_regular(cx, ino)?;
    let none =
        |what: &str| Failure::new(Code::NoSuchDevice, format!("inode {ino} has no {what} from there on"));
    if request.offset >= inode.size {
        return Err(none("data or hole"));
    }
    if !request.hole {
        let found = extents::overlapping(cx, ino, &(request.offset..limits::MAX_FILE_SIZE), 1)?;
        let found = found.first().ok_or_else(|| none("data"))?;
        return Ok(Offset { offset: found.offset.max(request.offset) });
    }
    let mut at = request.offset;
    for _ in 0..MAX_LOOKED_AT / PAGE {
        let page = extents::overlapping(cx, ino, &(at..limits::MAX_FILE_SIZE), PAGE)?;
        for extent in &page {
            if extent.offset > at {
                return Ok(Offset { offset: at });
            }
            at = extent.end();
        }
        if page.len() < PAGE {
            return Ok(Offset { offset: at.min(inode.size) });
        }
    }
    Ok(Offset { offset: inode.size })
}
