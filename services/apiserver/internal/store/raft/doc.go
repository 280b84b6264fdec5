// Package raft is store.Store over hashicorp/raft, for state that changes every second and is
// only needed while it is current. It keeps the current state and a short history for watches,
// and renewals share the disk's syncs.
//
// # States
//
// A member is identified by its name and its disk's id ("a/DISK"). The id is a random number,
// written in the transaction that creates the log file, which also holds the votes. The pair is
// both the id and the address by which raft knows the member. A disk is empty, new (it has an
// id), or a member's (it knows a membership).
//
// The first of the configured names founds the cluster, once all others have answered that they
// know no membership. All others wait until a leader adds them. A leader adds every process
// that answers at a configured name with an id that it does not know: first without a vote,
// then, when it has caught up with the log, in place of that name's old disk. If another
// authority decides the membership (Config.Follow), its names replace the configured ones once
// the store is founded, and the leader removes members that it does not name any more, once
// that is certain. A member that joins a store founded by others never founds one.
//
// If the quorum is lost permanently, the store cannot continue. Recover makes a store of a
// single member from a survivor's disk, with a new disk id and a revision far ahead.
//
// The state machine (machine.go) is a sorted key space with its revision, the log's time,
// bounds of prefixes, epochs and cancellations. It depends only on the log: it reads no clock,
// no configuration and no random number, and if it does not understand an entry, it stops the
// process instead of guessing. The revision increases by one with each write, expiry and
// eviction and never decreases; snapshots contain it. The history (history.go) is not part of
// the state: each member keeps as much as its bounds allow, and returns ErrCompacted beyond.
// Snapshots contain it nevertheless, so that watches can resume at a member that starts from
// one.
//
// # Writes
//
// The leader queues requests (propose.go) while entries are being written to disk, and writes
// those that are queued together as the next entry. Each write keeps its own precondition,
// verdict and revision, and a request is never split over two entries. Followers forward
// requests to the leader.
//
// Each attempt to write carries its store's session and a sequence number. An attempt whose
// reply did not arrive is cancelled through the log: after that, either it has been applied,
// which the history shows (Write.Settled recognizes the write), or it never will be and may be
// repeated. Hence no late attempt overwrites or revives anything, and an unknown outcome is
// never reported as a conflict.
//
// # Reads
//
// A linearizable read asks the leader for an index: one that the leader had applied at a time
// when a majority, asked after the read began, was still in its term, and after a barrier in
// that term. No other leader can have been elected in between, because a voter moves to a term
// before it votes in it. The reader waits until its own machine has applied that index.
// Concurrent reads share these rounds. A watch follows its member's machine.
//
// # Time
//
// An entry expires when the log's time passes its deadline, in the same command on every
// member. Each command carries its leader's monotonic clock. The log's time advances by the
// difference between two commands of the same term; a term has one leader in one process. The
// time between two leaders is therefore not counted, nor is time beyond 30 s during which a
// leader did not run: then entries expire late, never early. An idle leader writes its clock
// while there are entries that expire, more often in a young term than in an old one, so that
// at most a quarter of each term is lost and short terms do not stop the time.
//
// # Why a vote and an acknowledgement are never forgotten
//
// Members rely on two promises. A vote: in one term, a disk votes for one candidate, whose log
// is no shorter than its own. An acknowledgement: an entry is acknowledged to a client only
// when a majority of disks has it, and a disk that has it keeps it until a majority has
// replaced it.
//
//   - kill -9: a term, a vote and entries are written in bbolt transactions. Each is complete
//     and synced when the call that the reply waits for returns (logstore.go), and the kernel
//     keeps what a killed process has written. The library would write a vote in two steps. A
//     crash between them would leave the new term with an older candidate, which would then be
//     granted a vote without a check of its log; here it is one transaction.
//   - Power loss: a transaction syncs its data before the page that makes it valid, and that
//     page before it returns, so that the state after a power loss is that before or after the
//     transaction. The names of files are synced too: directories after a file is created
//     (bbolt does not), and a snapshot's own directory before the log that it replaces is
//     deleted (the library does not). The disk must really have synced what it reports as
//     synced.
//   - An emptied disk has lost its votes and entries, and the library would let it vote again
//     under its old name. Here its id is lost too: every request names the id that it is meant
//     for, and the disk with the new id refuses it. To the others, the old disk is a member
//     that is down. Its name gets a vote again under the new id, through a change of the
//     membership that a majority of the old one has written, without the new disk, and with the
//     log up to that point on its disk. A disk never founds a cluster while any other
//     configured member knows a membership or does not answer. If a majority of disks is
//     emptied, no leader is elected until an operator decides. Of a single member's disk there
//     is no second copy. What no member can detect is a disk that was reset to an earlier state
//     including its id: a member's directory must never be restored from a copy, but emptied.
//
// # Failures
//
//   - No majority: writes and linearizable reads fail after 12 s at the latest; watches stay
//     open without events.
//   - A leader that dies is replaced after its followers have not heard from it for 300 to 600
//     ms.
//   - A failed write to the log ends the process: its data may be on the disk or not, the
//     library does not check again, and only a restart finds out.
//   - A full queue returns ErrTooMany.
//
// # Invariants
//
// A vote or a write is never answered before it is on disk, a request for another member is
// never accepted, and the machine never reads a clock.
package raft
