//! What is agreed with the kernel when a mount begins.

use std::io;

use fuser::{InitFlags, KernelConfig};

/// The largest write, and with raised readahead the largest read.
const MAX_WRITE: u32 = 1 << 20;
/// Readahead and asynchronous direct requests that the kernel may have under way.
const MAX_BACKGROUND: u16 = 256;

/// Without these the promises could not be kept.
const NEEDED: InitFlags = InitFlags::FUSE_ATOMIC_O_TRUNC
    .union(InitFlags::FUSE_POSIX_LOCKS)
    .union(InitFlags::FUSE_FLOCK_LOCKS)
    // The server applies the umask or the directory's default ACL, whichever counts.
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_POSIX_ACL)
    // Pages go when size or mtime show that somebody else wrote.
    .union(InitFlags::FUSE_AUTO_INVAL_DATA);

/// These make it faster or more complete where the kernel has them. FUSE_WRITEBACK_CACHE is left out on purpose: it
/// turns sequential writes into random ones and hides sizes and times.
const WANTED: [InitFlags; 10] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// Settles flags and sizes. An error where the kernel lacks what is needed.
pub(super) fn negotiate(config: &mut KernelConfig) -> io::Result<()> {
    config.add_capabilities(NEEDED).map_err(|missing| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel's FUSE is too old: it lacks {missing:?}"),
        )
    })?;
    for wanted in WANTED {
        if config.add_capabilities(wanted).is_err() {
            tracing::info!("the kernel has no {wanted:?}");
        }
    }
    let told = |what: &str, nearest: u32| {
        tracing::info!("the kernel takes {what} of {nearest} at most");
    };
    if let Err(nearest) = config.set_max_write(MAX_WRITE) {
        told("writes", nearest);
    }
    if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
        told("background requests", nearest.into());
    }
    Ok(())
}
