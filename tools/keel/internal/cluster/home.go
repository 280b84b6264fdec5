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

// Keel runs what a home's files say, as root. So a home is trusted only if nobody
// but root and the caller can have written there.

// Trust fails unless a home, or the place where it will be made, can be changed by
// nobody but root and the caller.
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
		return distrust(home, fmt.Sprintf("others may write to it; `chmod go-w %s` if they have not", home))
	}
	return trustPath(filepath.Dir(home), 0)
}

// maxLinks bounds how many symbolic links lead to a home, as the kernel does.
const maxLinks = 40

// trustPath checks a directory and all that lead to it.
func trustPath(dir string, links int) error {
	for _, at := range ancestors(dir) {
		st, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it is made below one that was checked
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
			return distrust(dir, fmt.Sprintf("others may write to %s", at))
		}
	}
	return nil
}

// ancestors are a directory and all above it, the root first.
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

// distrust is a refusal that says the way out.
func distrust(path, why string) error {
	return fmt.Errorf("%s cannot hold a cluster: %s. keel runs programs as its files say: choose a directory that only you and root can change, such as --home /var/lib/keelson", path, why)
}

// Vacant fails if a directory holds files of somebody else and no cluster.
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
			return fmt.Errorf("%s is not empty (%s) and holds no cluster: choose a new or an empty directory with --home", home, e.Name())
		}
	}
	return nil
}

const (
	// file describes the cluster, and lockFile is held while it is changed.
	file     = "cluster.json"
	lockFile = "up.lock"
	// newPrefix is that of files that WriteFile has begun.
	newPrefix = ".new-"
)

// LockFile is the file that is locked while a home is changed.
func LockFile(home string) string { return filepath.Join(home, lockFile) }

var (
	made = map[string]bool{
		"cloud": true, "images": true, "kubeconfig": true, "log": true, "nodes": true,
		"pki": true, "run": true, "simulator": true, "volumes": true,
	}
	// apiserverDir is an apiserver's data, or what a recovery has set aside of it.
	apiserverDir = regexp.MustCompile(`^apiserver-[0-9]+(\.lost-[0-9]+)?$`)
)

// Ours reports whether keel makes an entry of that name in a home.
func Ours(name string) bool {
	return made[name] || apiserverDir.MatchString(name) || strings.HasPrefix(name, newPrefix) || name == file || name == lockFile
}

// Erase removes what keel made in a home, the description last so that an erasure
// that was interrupted can be repeated, and then the directory if nothing else is
// there. It returns the names of what it left.
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
