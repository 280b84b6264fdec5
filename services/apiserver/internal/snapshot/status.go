package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"keelson.dev/services/apiserver/internal/resource"
)

// Status describes the contents of a snapshot file whose hashes are correct.
type Status struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
	// Kind is "keelson" or "etcd".
	Kind     string    `json:"kind"`
	Manifest *Manifest `json:"manifest,omitempty"`
	// AgeSeconds is the time since the snapshot was taken. For a snapshot that etcd took, which
	// does not record that, it is the time since the file was modified.
	AgeSeconds   int64   `json:"ageSeconds"`
	EtcdRevision int64   `json:"etcdRevision"`
	RaftRevision int64   `json:"raftRevision,omitempty"`
	Objects      int     `json:"objects"`
	Resources    []Count `json:"resources"`
	// OtherKeys is the number of keys that are not objects.
	OtherKeys int `json:"otherKeys"`
	// Problem is why the file cannot be restored, or empty if it can.
	Problem string `json:"problem,omitempty"`
	// Notes is what an administrator should know before a restore.
	Notes []string `json:"notes,omitempty"`
}

// ReadStatus verifies a file and counts its contents. work is a directory for temporary files,
// which are as large as the file; if it is empty, the system's directory is used.
func ReadStatus(_ context.Context, path, work string, table *resource.Table) (_ *Status, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(work, "keelson-snapshot-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := open(path, dir)
	if err != nil {
		return nil, err
	}
	c, err := examine(s, newCatalogue(table))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer func() { err = errors.Join(err, c.close()) }()
	out := &Status{
		File: path, Bytes: s.size, Kind: "etcd", Manifest: s.manifest, AgeSeconds: int64(time.Since(st.ModTime()).Seconds()),
		EtcdRevision: int64(c.etcd.Revision()), Resources: c.counts, OtherKeys: c.others, Notes: c.notes(),
	}
	if s.manifest != nil {
		out.Kind, out.AgeSeconds = "keelson", int64(time.Since(s.manifest.Created).Seconds())
	}
	if c.raft != nil {
		out.RaftRevision = int64(c.raft.Revision())
	}
	for _, n := range c.counts {
		out.Objects += n.Objects
	}
	if err := c.restorable(path); err != nil {
		out.Problem = err.Error()
	}
	return out, nil
}

// notes returns what an administrator should know about the contents.
func (c *contents) notes() []string {
	var out []string
	for name, version := range c.otherVersions {
		out = append(out, fmt.Sprintf("%s are stored as %s and are converted to the served version when they are read", name, version))
	}
	slices.Sort(out)
	return out
}

// Print writes the status as text.
func (s *Status) Print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 4, 2, ' ', 0)
	kind := "of Keelson"
	if s.Manifest == nil {
		kind = "of etcd"
	}
	fmt.Fprintf(w, "File:\t%s (%s, %d bytes, hashes are correct)\n", s.File, kind, s.Bytes)
	if m := s.Manifest; m != nil {
		fmt.Fprintf(w, "Taken:\t%s by %s of cluster %s, %s ago\n", m.Created.Format(time.RFC3339), m.Apiserver, m.ClusterID, age(s.AgeSeconds))
	} else {
		fmt.Fprintf(w, "Written:\t%s ago\n", age(s.AgeSeconds))
	}
	fmt.Fprintf(w, "Revisions:\tetcd %d", s.EtcdRevision)
	if s.RaftRevision > 0 {
		fmt.Fprintf(w, ", raft %d", s.RaftRevision)
	}
	fmt.Fprintf(w, "\nObjects:\t%d, and %d other keys\n", s.Objects, s.OtherKeys)
	for _, n := range s.Notes {
		fmt.Fprintf(w, "Note:\t%s\n", n)
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "PROBLEM:\t%s\n", s.Problem)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(to)
	w = tabwriter.NewWriter(to, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "RESOURCE\tOBJECTS\tBYTES\tSTORE\tSERVED")
	for _, n := range s.Resources {
		served := "yes"
		if !n.Served {
			served = "no"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", n.Resource, n.Objects, n.Bytes, n.Store, served)
	}
	return w.Flush()
}

// age formats seconds as a duration.
func age(seconds int64) string { return (time.Duration(seconds) * time.Second).String() }
