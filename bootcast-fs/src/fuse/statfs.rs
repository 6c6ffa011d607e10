//! Replies to `statfs`.

use bootcast_proto::space::Space;
use fuser::ReplyStatfs;

/// Bytes of the blocks that `statfs` counts, and that programs are advised to read.
pub(super) const BLOCK: u32 = 4096;

/// Longest name, in bytes.
const NAME_MAX: u32 = 255;

/// Replies with the capacity of the server's file system. Without it, with 0 of 0 blocks, which
/// programs read as "unknown". The number of inodes is always unknown.
pub(super) fn answer(reply: ReplyStatfs, space: Option<Space>) {
    let (blocks, free, available) = space.map_or((0, 0, 0), |space| {
        let blocks = |bytes: u64| bytes / u64::from(BLOCK);
        (blocks(space.total), blocks(space.free), blocks(space.available))
    });
    reply.statfs(blocks, free, available, 0, 0, BLOCK, NAME_MAX, BLOCK);
}
