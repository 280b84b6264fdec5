package raft

import (
	"os"
	"path/filepath"
	"strings"

	hraft "github.com/hashicorp/raft"
)

// serverID returns the id of a member: its name and its disk's id.
func serverID(name, disk string) hraft.ServerID { return hraft.ServerID(name + "/" + disk) }

// nameOf returns the name in a server id.
func nameOf(id hraft.ServerID) string {
	name, _, _ := strings.Cut(string(id), "/")
	return name
}

// makeDir creates a private directory and its parents, and syncs their names.
func makeDir(dir string) error {
	dir = filepath.Clean(dir)
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil || d == filepath.Dir(d) {
			break
		}
		made = append(made, d)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range made {
		if err := syncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}
