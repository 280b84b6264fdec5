// Package snapshot saves a cluster's state into one file, tells what is in such a
// file, and makes the data directories of a new cluster from it. It also takes
// what `etcdctl snapshot save` writes, of a Kubernetes cluster too.
//
// # The file
//
// A tar archive, so that everybody can look into it: manifest.json (Manifest),
// raft.snap (the transient store, in package raft's own form), etcd.db (the
// lasting store: etcd's snapshot with its hash, which etcdutl reads), and at the
// end SHA256SUMS over all of them, as sha256sum -c wants it. What has no
// SHA256SUMS at its end was cut off. The file holds all Secrets: mode 0600.
//
// # What it shows
//
// Each store is shown as it was at one moment, with everything that had been
// acknowledged before the save began. The transient store's moment comes first:
// what an Event or a Lease was written after, in the lasting store, is in the
// snapshot too. Nothing else holds between the two.
//
// # Restoring
//
// A restored cluster is a new one. It has a token, the same for all its members,
// from which the members' disks, their seats in etcd and their ids in raft are
// made; so no disk of the cluster that was can take part in it, nor the other way
// round. All members get the same state:
//
//   - etcd's keys with the revisions that they had, without their history. The
//     store's own revision jumps (see after), and everything before is marked
//     compacted: whoever watched, or listed in pages, starts anew (410), and no
//     revision that anybody has seen comes to mean something else.
//   - The transient store's entries with theirs; its revision jumps likewise.
//     Entries that expire have as long as they had.
//   - Epochs of elected writers end: the keys that hold them are dropped, and the
//     transient store refuses whoever was elected before.
//   - The keys by which processes settle their own creates are dropped, and so are
//     admissions of members and changes of them: the new cluster has admitted nobody.
//
// Of a snapshot without raft.snap (Kubernetes', or of an etcd of its own), the
// objects of transient kinds move to the transient store. They are not dropped: a
// Lease is a promise to its holder, who believes in it after a restore as before,
// and nobody else may take it before it is over; and Events tell what went wrong.
// What Kubernetes encrypted at rest is refused, for nobody here has the key. What
// is of no kind that is served (custom resources) stays as it is and is counted.
//
// # Steps, and what a crash leaves
//
//  1. The file is verified as a whole: hashes, versions, every object that is
//     served is decoded. Nothing is written outside of the working directory.
//  2. Each directory gets a subdirectory "restoring" with the plan, and in it the
//     new data. An apiserver refuses to start on a directory that has one.
//  3. The plan is marked ready in all directories.
//  4. Directory by directory: what was there moves to before-restore-TIME, the new
//     data takes its place, restored.json says so, and "restoring" goes.
//
// A failure before step 3 removes "restoring" again: all is as it was. A kill
// before it leaves "restoring"; repeating the restore begins anew. A kill after it
// is repeated with the plan that was made: a directory that is done stays as it
// is, because a token's data is made once: a second time would forget votes.
//
// It must never delete or change data that was there before, never take a part of
// a file for the whole, and never let two of a cluster's lives share an identity.
package snapshot

import (
	"time"
)

const (
	// Version of the file that is written, and the newest that is read.
	Version = 1
	// format is what a manifest calls itself.
	format = "keelson-snapshot"

	// revisionSkip is how far revisions jump at the least: further than anything that was
	// written after the snapshot, at 40,000 writes a second for 300 days, and a
	// small part of what an int64 holds.
	revisionSkip = 1 << 40
)

// The files of the archive.
const (
	manifestFile = "manifest.json"
	raftFile     = "raft.snap"
	etcdFile     = "etcd.db"
	sumsFile     = "SHA256SUMS"
)

// Manifest is what a snapshot says of itself.
type Manifest struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	// ClusterID is etcd's id of the cluster, 16 hexadecimal digits.
	ClusterID string `json:"clusterID"`
	// Apiserver is the name of the one that took it, and Program its version.
	Apiserver string `json:"apiserver"`
	Program   string `json:"program"`
	// EtcdRevision is a revision up to which etcd's part holds every write;
	// RaftRevision is the one that the transient store's part shows.
	EtcdRevision int64 `json:"etcdRevision"`
	RaftRevision int64 `json:"raftRevision"`
}
