package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// Keel runs, as root, what the files of a home say. A home is therefore only trusted if no
// other users than root and the caller can have written to it.

// Trust returns an error unless only root and the caller can change a home, or the place where
// it will be created.
func Trust(home string) error {
	home, err := filepath.Abs(home)
	if err != nil {
		return err
	}
	st, err := os.Lstat(home)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return trustPath(filepath.Dir(home), 0)
	case err != nil:
		return distrust(home, err.Error())
	case st.Mode().Type() == fs.ModeSymlink:
		return distrust(home, "it is a symbolic link; name the directory itself")
	case !st.IsDir():
		return distrust(home, "it is not a directory")
	case owner(st) != os.Geteuid():
		return distrust(home, fmt.Sprintf("it belongs to user %d", owner(st)))
	case st.Mode()&0o022 != 0:
		return distrust(home, fmt.Sprintf("other users may write to it; if they have not, run `chmod go-w %s`", home))
	}
	return trustPath(filepath.Dir(home), 0)
}

// maxLinks is the number of symbolic links that are followed, the same as the kernel's.
const maxLinks = 40

// trustPath checks a directory and all its parents.
func trustPath(dir string, links int) error {
	for _, at := range ancestors(dir) {
		st, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it will be created below a directory that was checked
		}
		if err != nil {
			return err
		}
		if uid := owner(st); uid != 0 && uid != os.Geteuid() {
			return distrust(dir, fmt.Sprintf("%s belongs to user %d", at, uid))
		}
		switch {
		case st.Mode().Type() == fs.ModeSymlink:
			if links == maxLinks {
				return distrust(dir, "too many symbolic links lead there")
			}
			to, err := os.Readlink(at)
			if err != nil {
				return err
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(at), to)
			}
			if err := trustPath(to, links+1); err != nil {
				return err
			}
		case st.Mode()&0o022 != 0 && st.Mode()&fs.ModeSticky == 0:
			return distrust(dir, fmt.Sprintf("other users may write to %s", at))
		}
	}
	return nil
}

// ancestors returns a directory and all its parents, starting with the root.
func ancestors(dir string) []string {
	out := []string{dir}
	for dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		out = append(out, dir)
	}
	slices.Reverse(out)
	return out
}

func owner(st fs.FileInfo) int { return int(st.Sys().(*syscall.Stat_t).Uid) }

// distrust returns an error that explains what to do.
func distrust(path, why string) error {
	return fmt.Errorf("%s cannot be the home of a cluster: %s. keel runs programs according to its files: choose a directory that only you and root can change, such as --home /var/lib/keelson", path, why)
}

// Vacant returns an error if a directory contains files, but no cluster.
func Vacant(home string) error {
	if _, err := os.Lstat(filepath.Join(home, file)); err == nil {
		return nil
	}
	entries, err := os.ReadDir(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockFile && !strings.HasPrefix(e.Name(), newPrefix) {
			return fmt.Errorf("%s is not empty (%s) and contains no cluster: choose a new or empty directory with --home", home, e.Name())
		}
	}
	return nil
}

const (
	// file describes the cluster. lockFile is locked while it is changed.
	file     = "cluster.json"
	lockFile = "up.lock"
	// newPrefix is the prefix of files that WriteFile has not moved into place yet.
	newPrefix = ".new-"
)

// LockFile returns the path of the file that is locked while a home is changed.
func LockFile(home string) string { return filepath.Join(home, lockFile) }

var (
	made = map[string]bool{
		"cloud": true, "images": true, "kubeconfig": true, "log": true, "nodes": true,
		"pki": true, "run": true, "simulator": true, "volumes": true,
	}
	// apiserverDir matches the data directory of an apiserver, and copies that a recovery has
	// set aside.
	apiserverDir = regexp.MustCompile(`^apiserver-[0-9]+(\.lost-[0-9]+)?$`)
)

// Ours reports whether an entry of a home with this name is keel's.
func Ours(name string) bool {
	return made[name] || apiserverDir.MatchString(name) || strings.HasPrefix(name, newPrefix) || name == file || name == lockFile
}

// Erase removes keel's files from a home: the description last, so that an interrupted erasure
// can be repeated, and then the directory, if it is empty. It returns the names of the files
// that it kept.
func (c *Cluster) Erase() (kept []string, err error) {
	entries, err := os.ReadDir(c.Home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		switch name := e.Name(); {
		case !Ours(name):
			kept = append(kept, name)
		case name != file && name != lockFile:
			errs = append(errs, os.RemoveAll(c.Path(name)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return kept, err
	}
	for _, last := range []string{file, lockFile} {
		if err := os.Remove(c.Path(last)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return kept, err
		}
	}
	if len(kept) > 0 {
		return kept, nil
	}
	return nil, os.Remove(c.Home)
}
