//! Every bound of the crate: the number, why it is that number, and what happens at the bound.

use core::time::Duration;

/// Packets that wait for one client, and as many disco messages apart from them: what two reads of the shell can hold for
/// it. derper: 32 and 32, and loses most of what it carries when it is offered too much. What is older is worth less, so
/// at the bound the oldest is dropped, counted.
pub const MAIL_PACKETS: usize = 64;

/// Bytes of packets that wait for one client: enough for [`MAIL_PACKETS`] of the largest that WireGuard sends, and for the
/// megabyte that the stock prober sends at once in the largest frames there are. A packet keeps the buffer that it was
/// read into, mostly 32 KiB in the shell and never more than 128 KiB, so a sender who picks them well makes that 16 MiB;
/// derper: 4 MiB. At the bound the oldest are dropped, counted.
pub const MAIL_BYTES: usize = 1 << 20;

/// Packets that wait for all clients together and keep the buffers that they were read into: 256 MiB at most. At the bound
/// a further one is copied out of its buffer.
pub const MAIL_BUFFERS: u64 = 2_048;

/// Bytes of a frame that stays in the buffer that it was read into. A longer one is copied out of it, and what came behind it
/// is, too: buffers grow for long frames, and packets that wait would keep them.
pub const FRAME_IN_PLACE: usize = 16 << 10;

/// Bytes of packets that wait for all clients together: whoever has many clients admitted, none of which reads, is not to
/// take [`MAIL_BYTES`] for each of them. At the bound a client has [`MAIL_SHARE`].
pub const MAIL_BYTES_OF_ALL: u64 = 256 << 20;

/// Bytes of packets that may wait for one client while [`MAIL_BYTES_OF_ALL`] do for all: some ten full packets. At the bound
/// the oldest are dropped, counted.
pub const MAIL_SHARE: usize = 16 << 10;

/// A packet that waited this long is dropped, counted: whoever sent it has sent it again.
pub const MAIL_AGE: Duration = Duration::from_secs(2);

/// Notices of peers gone that wait for one client. At the bound the oldest is dropped, counted; the client finds out by
/// asking again.
pub const MAIL_NOTICES: usize = 128;

/// What is written at once: the plaintext of one full TLS record. A frame that is longer goes alone.
pub const WRITE_BYTES: usize = 16 << 10;

/// Bytes that the stream to a client takes before it has sent the last ones (`TCP_NOTSENT_LOWAT`): a few records, so that it
/// does not run dry between two of the shell's turns. What waits there can grow old unseen; the mailbox drops what is too
/// old.
pub const UNSENT_BYTES: u32 = 64 << 10;

/// A client that takes no byte of a write for this long is closed: its mailbox dropped everything worth having. One that
/// takes some, however slowly, stays.
pub const WRITE_STALL: Duration = Duration::from_secs(10);

/// From the connection to the client's first frame. derper: 10 s. At the bound the connection is closed.
pub const GREETING: Duration = Duration::from_secs(10);

/// Bytes of a first frame that is not whole yet: stock clients send some 200, derper takes 256 KiB. At the bound the
/// connection is closed.
pub const GREETING_BYTES: usize = 16 << 10;

/// Bytes of any later frame that is not whole yet: more than the longest packet takes. At the bound the connection is
/// closed.
pub const PARTIAL_BYTES: usize = 128 << 10;

/// For a verdict on a client. derper: 5 s. At the bound it is refused.
pub const ADMISSION: Duration = Duration::from_secs(5);

/// Silence after which a keepalive is sent. Stock clients give up after 120 s without a byte; derper: 60 s.
pub const KEEPALIVE: Duration = Duration::from_secs(60);

/// Added to [`KEEPALIVE`] at random once per connection, so that clients that came together are not served together.
pub const KEEPALIVE_JITTER: Duration = Duration::from_secs(5);

/// "Not here" notices to one client come at most this often in the long run, so that nobody can make the relay send
/// as much as it is sent. derper: one a second.
pub const NOT_HERE_EVERY: Duration = Duration::from_secs(1);

/// "Not here" notices to one client in one burst. derper: 3. At the bound a notice is left out.
pub const NOT_HERE_BURST: u32 = 3;

/// Clients that one client has sent to and that are told when it leaves. At the bound those that left are forgotten,
/// and if that makes no room a further one is not told.
pub const REACHED: usize = 4_096;

/// Nodes that may connect and are remembered. At the bound the one that was asked for longest ago is forgotten.
pub const VERDICTS: usize = 65_536;

/// Nodes that may not and are remembered, each for [`REFUSED_FOR`]: 400 a second. At the bound the one that was asked for
/// longest ago is forgotten, and is asked for again.
pub const REFUSALS: usize = 4_096;

/// How long a yes holds before it is asked for again.
pub const ALLOWED_FOR: Duration = Duration::from_secs(600);

/// How long a no holds: a node that registers now wants its relay now, and a refused one comes back every few seconds.
pub const REFUSED_FOR: Duration = Duration::from_secs(10);

/// How long an old yes still counts while nobody can be asked.
pub const ALLOWED_WHILE_AWAY: Duration = Duration::from_secs(24 * 3600);

/// First frames that are remembered, so that a recorded one lets nobody in a second time. At the bound the oldest is
/// forgotten.
pub const GREETINGS_REMEMBERED: usize = 65_536;

/// Bytes of one client that wait to be read because it is being slowed down or asked about. More than the longest
/// frame; a driver stops reading long before. At the bound the connection is closed.
pub const UNREAD_BYTES: usize = (1 << 20) + (256 << 10);

/// Connections at once; half as many as there may be open files, where that is less. At the bound a new one is closed, counted.
pub const CONNECTIONS: usize = 100_000;

/// Of them, those of one source: a tenth, so that ten sources have to join to keep others out, and enough for the nodes
/// behind one large address translator. Where files are few it is a quarter of the places. At the bound a new one is closed,
/// counted.
pub const CONNECTIONS_OF_SOURCE: usize = 10_000;

/// Connections whose client is not in yet. Each lasts [`GREETING`] twice and [`ADMISSION`] at most; two cores finish some
/// thousand handshakes a second. At the bound one that has waited long makes room for a new one, counted; see
/// [`crate::gate`].
pub const UNGREETED: usize = 4_096;

/// Questions at once about who may connect, asked of a program elsewhere: each is a connection there, all of one source, which
/// has [`UNGREETED_OF_SOURCE`]. At the bound the next one waits, as long as an answer may take.
pub const QUESTIONS: usize = 64;

/// Of those in [`UNGREETED`], those of one source: a sixteenth. A whole site that comes back after a restart knocks again. At the bound a
/// new one is closed, counted.
pub const UNGREETED_OF_SOURCE: usize = 256;

/// Times that the connections of one key take the word from each other before they are taken for two nodes with one key.
/// A node whose network changed does so once.
pub const CLONE_TURNS: u32 = 4;
