// Package fault runs three apiservers as built programs, injects faults while clients read,
// write and watch, and checks afterwards that every response was correct.
//
// # The sandbox
//
// The tests run in a sandbox: this program again, in a network, a mount and a process
// namespace of its own (sandbox.go). The kernel removes all of it when its first process
// ends, for whatever reason; there is no route out of it. Each member has a network
// namespace and a tmpfs of its own. All packets between members and clients pass through
// this process (network.go), which drops and delays them for each ordered pair of stations,
// so that partitions of every shape, latency and loss need no kernel module. A seccomp filter
// passes a member's fsync and fdatasync calls to this process (sync.go), which lets them continue,
// delays them, or reports a failure although the data was written. To let a clock jump, this
// process writes an offset into the member's vDSO (clock.go).
//
// # The states of a fault
//
//	chosen    by a generator that depends on nothing but its seed (plan.go): one or two at
//	          a time, on different members if the second would harm what the first left. No
//	          disk is emptied or damaged before the previous fault has been recovered from.
//	injected  a fault of "the leader" looks the leader up only at this point.
//	healed    always, even if the test has failed.
//	over      once every member is ready and has a vote in both stores. If that takes too
//	          long, the test fails.
//
// # The checks
//
// For each store (ConfigMaps are in etcd, Leases in raft), by the revisions that objects
// carry (check.go):
//
//   - Every watch of every member saw the same events, in the order of their revisions,
//     each once; it was cut and resumed at random events, and is resumed once more, at
//     the end, from revisions that were seen before.
//   - An acknowledged write is among the events, with its revision. A refused one is not.
//     One of unknown outcome is there at most once.
//   - A list is exactly the state at its revision. That is no older than any revision that
//     a client knew before the call, and no newer than what was written before the
//     answer.
//   - For each object, creates, gets, conditional and unconditional writes, deletes and
//     the writes of batches are linearizable (model.go), unknown outcomes included.
//
// The package must not end a process that it has not started, nor let a packet out of the
// sandbox.
package fault
