// Package member decides which apiservers are members, that is, carry the stores together,
// keeps their addresses, and changes the membership.
//
// # Membership
//
// etcd's membership is the only authoritative one. The raft store follows it: its leader adds
// every etcd member and removes the others (raft.Membership). A change is therefore a single
// change in etcd. If it is interrupted after that, the leader of the raft store completes it.
//
// # Addresses
//
// Each member announces its addresses to the others without a quorum, in etcd's cards, and
// saves those that it receives on its disk. Book reads them and falls back to the addresses
// given by flags. A member is identified by its certificate and its name, not by its address:
// one that comes back elsewhere announces its new address, and connections to the old one are
// closed.
//
// # States of a name
//
//	unknown   no member knows the name.
//	admitted  Join recorded the name in etcd for ten minutes. A process with this name and
//	          an empty disk may join.
//	learner   it is a member of etcd and of the raft store, without a vote.
//	voter     it has caught up, and each store's leader has given it a vote.
//	retiring  Leave has asked it to stop: it hands over its leaderships and completes the
//	          requests in flight, then its process ends.
//	gone      Leave removed it from etcd. Its process does not start with that disk again,
//	          and the leader of the raft store removes it there.
//
// # Failures
//
//   - A reply is lost: every call may be repeated, and continues from the current state.
//   - A joining process dies: if it is not a member of etcd yet, its admission expires;
//     otherwise it continues when it is back, or Leave removes it.
//   - A change would leave fewer healthy voters than the remaining members need: it is refused
//     before anything changes. Two changes that would do so together are serialized: Leave
//     holds a key in etcd, which expires if its holder dies.
//   - The quorum is lost: no change is possible. If it is lost permanently, see etcd.Recover.
//
// # Invariants
//
// No name joins that was not admitted, and no member is removed if the remaining ones could not
// go on without it.
package member
