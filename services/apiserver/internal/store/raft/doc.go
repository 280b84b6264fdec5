// Package raft is store.Store over hashicorp/raft, for what changes every second
// and matters now: only the present state is kept, with a short history for
// watches, and renewals share the disk's syncs.
//
// # States
//
// A member is its name and its disk's id ("a/DISK"), a random number that is
// written in the transaction that makes the log's file, which the votes are kept
// in too; the pair is the id and the address that raft knows it by. A disk is
// empty, or new (it has an id), or a member's (it knows a membership). The first of
// the configured names founds the cluster, once all of them have answered that they
// know no membership; every other one waits until a leader takes it in. A leader
// takes in whoever answers at a configured name with an id that it does not know:
// without a vote until it has caught up with the log, then in place of that name's
// old disk. Where another authority says who shall be a member (Config.Follow), its
// names take the place of the configured ones once the store is founded, and the
// leader lets go whom it names no more, when that is certain. Who joins a store that
// others founded never founds one.
//
// A quorum that is lost for good ends the store; Recover makes one of a single member
// from a survivor's disk, under another id of the disk and with revisions far ahead.
//
// The state machine (machine.go) is a sorted key space with its revision, the
// log's time, bounds of prefixes, epochs and cancellations. It depends on the log
// alone: it reads no clock, no configuration and no random number, and it stops
// the process at an entry that it does not understand rather than guess. The
// revision grows by one with each write, expiry and eviction and never goes back;
// a snapshot carries it. The history (history.go) is not part of it: each member
// keeps as much as its bounds allow, and answers ErrCompacted beyond. A snapshot takes
// it along all the same, so that watches resume at a member that starts from one.
//
// # Writes
//
// Requests gather in the leader (propose.go) while an entry is on its way to disk,
// and make the next entry together; each keeps its own precondition, verdict and
// revision, and one request is never split over two entries. A follower forwards.
// Each attempt to write carries its store's session and a sequence. An attempt
// whose answer did not come is cancelled through the log: after that it has been
// applied, which the history shows (Write.Settled tells whose write it was), or it
// never will be, and may be repeated. So no late attempt overwrites or revives
// anything, and an unknown outcome is never reported as a conflict.
//
// # Reads
//
// A linearizable read asks the leader for an index: one that the leader had
// applied at a time when a majority, asked after the read began, was still in its
// term, and after a barrier of that term. Nobody can have been elected in between,
// because a voter moves to a term before it votes in it. The reader waits until
// its own machine has applied that index. Concurrent reads share such rounds. A
// watch follows its member's machine.
//
// # Time
//
// An entry expires when the log's time passes its deadline, in the same command
// on every member. Each command carries its leader's monotonic clock; the log's
// time moves by the difference between two commands of the same term, and a term
// has one leader in one process. So time between two leaders is not counted, nor
// is that of a leader's sleep beyond 30 s: entries expire late then, never early.
//
// # Why a vote and an acknowledgement are never forgotten
//
// Members count on two promises. A vote: in one term, a disk votes for one
// candidate whose log is no shorter than its own. An acknowledgement: an entry is
// acknowledged to a client only when a majority of disks has it, and a disk that
// has it keeps it until a majority has something in its place.
//
//   - kill -9: a term, a vote and entries are written in bbolt transactions, each
//     complete and synced when the call returns that the answer waits for
//     (logstore.go); the kernel keeps what a killed process has written. The
//     library would write a vote in two steps, between which a crash leaves the new
//     term with an older candidate, who would then be given a vote without a look
//     at his log; here it is one transaction.
//   - Power loss: a transaction syncs its data before the page that makes it
//     valid, and that page before it returns, so that after power loss there is
//     the state before or after it. The names of the files are synced too:
//     directories after a file is made (bbolt does not), and a snapshot's own
//     directory before the log that it replaces is deleted (the library does not).
//     What a disk claims to have synced it must have synced.
//   - An emptied disk has forgotten its votes and entries, and the library would
//     let it vote anew under its old name. Here its id went with it: every request
//     names the id that it is meant for, and the stranger refuses. To the others the
//     old disk is a member that is down. Its name gets a vote again under the new
//     id, through a change of the membership that a majority of the old one has
//     written down, the stranger not among them, and with the log up to that point
//     on its disk. A disk never founds a cluster while any other configured member
//     knows a membership or does not answer. If a majority of disks is emptied,
//     nothing is elected until an operator decides; of a single member's disk there
//     is no second copy. What nobody can see is a disk that was put back to an
//     earlier state, id and all: a member's directory must never be restored from a
//     copy, but emptied.
//
// # Failures
//
//   - No majority: writes and linearizable reads fail after 12 s at the latest;
//     watches stand still.
//   - A leader that dies is replaced after its followers have heard nothing for
//     300 to 600 ms.
//   - A write to the log that fails ends the process: what it was for may be on the
//     disk or not, the library does not ask again, and only a start finds out.
//   - A queue that is full answers ErrTooMany.
//
// It must never answer a vote or a write before it is on disk, never take a
// request that is meant for another member, and never let the machine see a clock.
package raft
