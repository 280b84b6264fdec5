// Package failpoint lets tests of the built program make a store's commit points fail:
// before they do anything, without a trace, or after they are done.
//
// Only a program that is built with the tag "failpoints" has them. In all others At is
// a constant, and the compiler removes what depends on it.
//
// It must never be in a program that people run.
package failpoint

// Action is what a commit point suffers.
type Action uint8

// The actions.
const (
	// None lets it be.
	None Action = iota
	// Refuse fails before anything is done, and says so.
	Refuse
	// LoseRequest does nothing and does not say so.
	LoseRequest
	// LoseAnswer does all of it and reports a failure.
	LoseAnswer
)

// The points.
const (
	// Etcd is a proposal to etcd.
	Etcd = "etcd.propose"
	// Raft is an attempt to write to the raft store.
	Raft = "raft.propose"
	// RaftLog is a member writing entries into its raft log, RaftVote its term or
	// vote.
	RaftLog  = "raft.log"
	RaftVote = "raft.vote"
)

// Variable names the file that the points are read from, again and again: lines of a
// point, an action (refuse, lose-request, lose-answer) and a probability.
const Variable = "KEELSON_FAILPOINTS"
