package raft

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	hraft "github.com/hashicorp/raft"
)

// serverID is a member's name and its disk's id. An emptied disk has another.
func serverID(name, disk string) hraft.ServerID { return hraft.ServerID(name + "/" + disk) }

// nameOf is the name in a server id.
func nameOf(id hraft.ServerID) string {
	name, _, _ := strings.Cut(string(id), "/")
	return name
}

// diskID reads the disk's id, and makes one where there is none. It is on disk
// before anything else is.
func diskID(dir string) (string, error) {
	if err := makeDir(dir); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "disk-id")
	data, err := os.ReadFile(path)
	if err == nil {
		id := strings.TrimSpace(string(data))
		if id == "" || strings.Contains(id, "/") {
			return "", fmt.Errorf("%s holds no id", path)
		}
		return id, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "log.db")); !errors.Is(err, os.ErrNotExist) {
		// Under a new id, its votes would be forgotten.
		return "", fmt.Errorf("%s is missing beside a log: restore it or empty the directory", path)
	}
	id := rand.Text()
	f, err := os.CreateTemp(dir, "disk-id.*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(id + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", err
	}
	return id, syncDir(dir)
}

// makeDir makes a private directory, and its parents, whose names last.
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
