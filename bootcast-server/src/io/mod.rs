//! The only module with sockets, threads and a clock.
//!
//! | module | does |
//! |---|---|
//! | [`sender`] | runs all casts on one thread |
//! | [`reader`] | reads files into datagrams, and encodes repair symbols, on threads of its own |
//! | [`threads`] | starts threads, and notices when one of them panics |
//! | [`cast_keys`] | derives the key of each cast's datagrams |
//! | [`socket`] | sends datagrams |
//! | [`group_watch`] | listens for other senders in the groups of casts |
//! | [`interface`] | finds the network interface |
//! | [`stable_version`] | waits until the version of a newly written file is stable |
//! | [`blocking_pool`] | shares threads between the subtrees of the served directory |
//! | [`listings`] | lists each directory once for all concurrent requests |
//! | [`manifests`] | hashes each file once for all requests for its manifest |
//! | [`profiles`] | keeps which leaves of a content readers want first |
//! | [`state_dir`] | keeps manifests and profiles across restarts |
//! | [`identity`] | announces versions: compares bytes when attributes change |
//! | [`prehash`] | computes manifests ahead, at idle priority |
//! | [`http`] | serves the connections of the control plane |
//! | [`client_stream`] | watches connections: clients that read too slowly, or closed |
//! | [`peers`] | limits the connections of each host |
//! | [`request_limits`] | limits the requests of each host |
//! | [`bundles`] | copies small files into bundles, which are cast as one file |
//! | [`small_files`] | knows which small files several hosts ask for |
#![expect(clippy::disallowed_methods, reason = "the clock is read here and nowhere else")]

pub mod blocking_pool;
pub mod bundles;
pub mod cast_keys;
pub mod client_stream;
pub mod group_watch;
pub mod http;
pub mod identity;
pub mod interface;
pub mod listings;
pub mod manifests;
pub mod peers;
pub mod prehash;
pub mod profiles;
pub mod reader;
pub mod request_limits;
pub mod sender;
pub mod small_files;
pub mod socket;
pub mod stable_version;
pub mod state_dir;
#[expect(unsafe_code, reason = "the door to system calls that no safe library offers")]
mod sys;
pub mod threads;
