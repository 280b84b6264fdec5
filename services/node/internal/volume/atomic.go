package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// file is one file of a volume made of API objects.
type file struct {
	data []byte
	mode os.FileMode
	// uid is the file's owner, unless nil.
	uid *int64
}

const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// maxFileName is the maximum length of a file name in bytes.
const maxFileName = 255

// writeAtomically makes dir contain exactly the given files, consistently for programs that
// read them through the links: the files are in a directory with a timestamp in its name,
// the link ..data points to it and is replaced by a rename, and the visible names are links
// into ..data. This is Kubernetes' layout, and programs that watch their configuration rely
// on it. It reports whether anything changed.
func writeAtomically(dir string, payload map[string]file, group *int64) (bool, error) {
	for name := range payload {
		if err := validName(name); err != nil {
			return false, err
		}
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if old != "" && same(filepath.Join(dir, old), payload, group) {
		return false, links(dir, payload)
	}
	stamp, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return false, err
	}
	if err := fill(stamp, payload, group); err != nil {
		return false, errors.Join(err, os.RemoveAll(stamp))
	}
	link := filepath.Join(dir, newDataLink)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, errors.Join(err, os.RemoveAll(stamp))
	}
	if err := os.Symlink(filepath.Base(stamp), link); err != nil {
		return false, errors.Join(err, os.RemoveAll(stamp))
	}
	if err := os.Rename(link, filepath.Join(dir, dataLink)); err != nil {
		return false, errors.Join(err, os.RemoveAll(stamp))
	}
	if err := links(dir, payload); err != nil {
		return true, err
	}
	return true, sweep(dir, filepath.Base(stamp))
}

func validName(name string) error {
	if name == "" || path.IsAbs(name) || len(name) > 4096 {
		return fmt.Errorf("invalid path %q: must be relative and not empty", name)
	}
	for i, part := range strings.Split(name, "/") {
		if part == ".." || len(part) > maxFileName || part == "" {
			return fmt.Errorf("invalid path %q", name)
		}
		if i == 0 && strings.HasPrefix(part, "..") {
			return fmt.Errorf("invalid path %q: must not start with '..'", name)
		}
	}
	return nil
}

// fill writes the files into a new directory.
func fill(dir string, payload map[string]file, group *int64) error {
	if err := os.Chmod(dir, dirMode(group)); err != nil {
		return err
	}
	if err := chgrp(dir, group); err != nil {
		return err
	}
	for _, name := range names(payload) {
		f := payload[name]
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := mkdirs(dir, filepath.Dir(full), group); err != nil {
			return err
		}
		if err := os.WriteFile(full, f.data, 0o600); err != nil {
			return err
		}
		if f.uid != nil {
			if err := os.Chown(full, int(*f.uid), -1); err != nil {
				return err
			}
		}
		if err := chgrp(full, group); err != nil {
			return err
		}
		if err := os.Chmod(full, f.finalMode(group)); err != nil { // the umask was applied to WriteFile's mode
			return err
		}
	}
	return nil
}

// finalMode returns a file's mode. If the pod has a group, the group may read the file.
func (f file) finalMode(group *int64) os.FileMode {
	if group != nil {
		return f.mode | 0o440
	}
	return f.mode
}

func dirMode(group *int64) os.FileMode {
	if group != nil {
		return 0o755 | os.ModeSetgid
	}
	return 0o755
}

func mkdirs(root, dir string, group *int64) error {
	if dir == root {
		return nil
	}
	if err := mkdirs(root, filepath.Dir(dir), group); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(chgrp(dir, group), os.Chmod(dir, dirMode(group)))
}

func chgrp(name string, group *int64) error {
	if group == nil {
		return nil
	}
	return os.Lchown(name, -1, int(*group))
}

// same reports whether a directory contains exactly the given files.
func same(dir string, payload map[string]file, group *int64) bool {
	count := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		want, ok := payload[filepath.ToSlash(rel)]
		if !ok {
			return errDiffers
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		have, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, want.data) || info.Mode().Perm() != want.finalMode(group).Perm() {
			return errDiffers
		}
		count++
		return nil
	})
	return err == nil && count == len(payload)
}

var errDiffers = errors.New("differs")

// links creates the visible links and removes those of files that are gone.
func links(dir string, payload map[string]file) error {
	want := map[string]bool{}
	for name := range payload {
		top, _, _ := strings.Cut(name, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if want[e.Name()] {
			delete(want, e.Name())
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for name := range want {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes the timestamped directories other than keep.
func sweep(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "..2") && e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func names(payload map[string]file) []string {
	out := make([]string, 0, len(payload))
	for k := range payload {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
