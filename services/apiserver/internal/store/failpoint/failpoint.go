// Package failpoint lets tests of the built programs inject failures at the points where stores
// commit: failures before anything is done, with a definite or an unknown outcome, and failures
// after the work is done.
//
// Failpoints exist only in programs that are built with the tag "failpoints". In all others, At
// returns a constant and the compiler removes the code that depends on it.
//
// A program built with the tag must not be used in production.
package failpoint

// Action is what happens at a failpoint.
type Action uint8

// The actions.
const (
	// None injects no failure.
	None Action = iota
	// Refuse fails with a definite error, before anything is done.
	Refuse
	// LoseRequest fails before anything is done, but leaves the outcome unknown.
	LoseRequest
	// LoseAnswer does the work, and then fails and leaves the outcome unknown.
	LoseAnswer
)

// Names of failpoints.
const (
	// Etcd is a proposal to etcd.
	Etcd = "etcd.propose"
	// Raft is an attempt to write to the raft store.
	Raft = "raft.propose"
	// RaftLog is writing entries to a member's raft log, and RaftVote writing its term or vote.
	RaftLog  = "raft.log"
	RaftVote = "raft.vote"
)

// Variable is the environment variable with the path of the configuration file, which is reread
// continually. Each of its lines has a failpoint, an action (refuse, lose-request or
// lose-answer) and a probability from 0 to 1.
const Variable = "KEELSON_FAILPOINTS"
