// Package member is which apiservers carry the stores together, where they are, and
// how that changes.
//
// # Who is a member
//
// etcd's membership is the one truth. The raft store follows it: its leader takes
// in whoever has a place in etcd, and lets go who has none (raft.Membership). So a
// change is one change of etcd's, and what was interrupted after it is finished by
// whoever leads the raft store.
//
// # Where they are
//
// Each member tells the others its addresses, without quorum, in etcd's cards; each
// keeps what it heard on its disk. The Book reads them, and falls back to what the
// flags say. A member is known by its certificate and its name, not by its address:
// one that came back elsewhere tells the others, and connections to its old address
// are ended.
//
// # States of a name
//
//	stranger  nobody knows it.
//	admitted  Join wrote it down in etcd, for ten minutes. Who is there under the name
//	          with an empty disk is let in.
//	learner   it has a place in etcd without a vote, in the raft store too.
//	voter     it has caught up: each store's leader gives it its vote by itself.
//	retiring  Leave has asked it to end: it hands over, finishes what it is asked, and
//	          its process ends.
//	gone      Leave took its place away; its process does not start with that disk
//	          again. The raft store's leader lets it go.
//
// # Failures
//
//   - An answer is lost: every call may be repeated and goes on from where things are.
//   - Who asked to join dies: without a place, the admission is forgotten; with one,
//     it goes on when it is back, or Leave takes the place away.
//   - A change would leave fewer healthy voters than the rest needs: it is refused
//     before anything is done. Two changes that would do so together are made one
//     after the other: Leave holds a key in etcd, which expires if its holder dies.
//   - The quorum is lost: no change is made. For good: see etcd.Recover.
//
// It must never let a name in that nobody admitted, and never take a place away
// from members who could then not go on.
package member
