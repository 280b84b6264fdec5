// Package fault runs three apiservers as built programs, hurts them while clients
// read, write and watch, and checks afterwards that nobody was told anything untrue.
//
// # The place
//
// The tests run in a sandbox: this program again, in a network, a mount and a process
// namespace of its own (sandbox.go). The kernel ends and removes everything of it with
// its first process, however that ends; there is no route out of it. Each member has
// a network namespace and a tmpfs of its own. All packets between members and clients
// pass through this process (network.go), which drops and delays them for each ordered
// pair of stations: so partitions of every shape, latency and loss need no module of
// the kernel. A member's fsync and fdatasync are handed to this process by a seccomp
// filter (sync.go), which lets them through at once, later, or says that they failed
// though what they were for is there. A clock jumps by an offset that is written into
// the member's own vDSO (clock.go).
//
// # A fault's states
//
//	chosen    by a generator that knows nothing but its seed (plan.go): one or two at
//	          a time, of different members where the second would take what the first
//	          left; nothing that empties or breaks a disk while another one is
//	          not whole again.
//	injected  "the leader" is looked up only here.
//	healed    always, also when the test has failed.
//	over      every member is ready, and has a vote in both stores. Not being over
//	          in time is a failure of its own.
//
// # What is checked
//
// For each store (ConfigMaps lie in etcd, Leases in raft), by the revisions that
// objects carry (check.go):
//
//   - Every watch of every member saw the same events, in the order of their revisions,
//     each once; it was cut and resumed at random events, and is resumed once more, at
//     the end, from revisions that were seen before.
//   - What was acknowledged is among the events, with its revision. What was refused is
//     not. What had an unknown outcome is there at most once.
//   - A list is the state at its revision, exactly; its revision is no older than
//     anything that somebody knew before it was asked for, and no newer than what was
//     written after it was answered.
//   - For each object, creates, gets, conditional and unconditional writes, deletes and
//     the writes of batches are linearizable (model.go), unknown outcomes included.
//
// It must never end what it has not started, and never let a packet out.
package fault
