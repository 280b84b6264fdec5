// Package snapshot saves a cluster's state to one file, reports what such a file contains, and
// creates the data directories of a new cluster from it. It also reads files that `etcdctl
// snapshot save` wrote, including those of a Kubernetes cluster.
//
// # The file
//
// The file is a tar archive, so that standard tools can read it. It contains, in this order:
// manifest.json (Manifest), raft.snap (the transient store, in the format of package raft),
// etcd.db (the lasting store: etcd's snapshot with its hash, which etcdutl reads), and
// SHA256SUMS over the others, in the format of sha256sum -c. A file that does not end with
// SHA256SUMS was cut off. The file contains all Secrets: its mode is 0600.
//
// # Consistency
//
// Each store is saved as of one moment, with every write that had been acknowledged before the
// save began. The transient store's moment is the earlier one: a write to the lasting store
// that happened before a saved write of an Event or a Lease is saved too. There is no other
// guarantee between the two.
//
// # Restoring
//
// A restored cluster is a new cluster. Its token, the same for all its members, determines the
// identities of the members' disks, their seats in etcd and their ids in raft, so that no disk
// of the old cluster can take part in the new one, or the other way round. All members get the
// same state:
//
//   - etcd's keys keep their revisions, without their history. The store's own revision jumps
//     (see after) and everything before is marked compacted: watches and paged lists start over
//     (410), and no revision that a client has seen gets a second meaning.
//   - The transient store's entries keep their revisions; the store's own revision jumps too.
//     The remaining lifetime of entries that expire is kept.
//   - Epochs of elected leaders end: their keys are dropped, and the transient store refuses
//     writes of leaders that were elected before.
//   - Keys by which apiservers resolve the unknown outcomes of their creates are dropped, and
//     so are admissions of members and the lock for changes of the membership: the new cluster
//     has admitted no one.
//
// If the snapshot has no raft.snap (one of a Kubernetes cluster or of an external etcd), the
// objects of transient kinds move to the transient store. They are not dropped: a Lease is a
// promise to its holder, which relies on it after a restore as before, and no one else may take
// it before it expires; and Events explain what went wrong. Objects that Kubernetes encrypted
// at rest are refused, because the key is not available here. Objects whose kind is not served
// (custom resources) are restored unchanged and are counted.
//
// # Steps
//
//  1. The file is verified completely: hashes, versions, and every object of a served
//     kind is decoded. Nothing is written outside the working directory.
//  2. Each data directory gets a subdirectory "restoring" with the plan and the new data.
//     An apiserver does not start on a data directory that has one.
//  3. The plan is marked ready in all directories.
//  4. In one directory after another, the old data moves to before-restore-TIME, the new
//     data replaces it, restored.json is written, and "restoring" is removed.
//
// # Failures
//
// A failure before step 3 removes "restoring" again, so that nothing has changed. A kill before
// step 3 leaves "restoring"; repeating the restore starts over. After a kill during or after
// step 3, repeating the restore continues with the same plan: directories that are done are not
// changed, because the data of a token is created only once: creating it again would forget
// votes.
//
// # Invariants
//
// Existing data is never deleted or changed, an incomplete file is never accepted as complete,
// and no two incarnations of a cluster share an identity.
package snapshot

import (
	"time"
)

const (
	// Version is the format version that is written, and the newest that is read.
	Version = 1
	// format identifies a manifest as one of this package.
	format = "keelson-snapshot"

	// revisionSkip is the least number of revisions that a restored store skips. It exceeds
	// what is written after the snapshot at 40,000 writes a second for 300 days, and is a small
	// part of the range of an int64.
	revisionSkip = 1 << 40
)

// Names of the files in the archive.
const (
	manifestFile = "manifest.json"
	raftFile     = "raft.snap"
	etcdFile     = "etcd.db"
	sumsFile     = "SHA256SUMS"
)

// Manifest describes a snapshot.
type Manifest struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	// ClusterID is etcd's cluster id, as 16 hexadecimal digits.
	ClusterID string `json:"clusterID"`
	// Apiserver is the name of the apiserver that took the snapshot, and Program its version.
	Apiserver string `json:"apiserver"`
	Program   string `json:"program"`
	// EtcdRevision is a revision up to which etcd's part contains every write. RaftRevision is
	// the revision of the transient store's part.
	EtcdRevision int64 `json:"etcdRevision"`
	RaftRevision int64 `json:"raftRevision"`
}
