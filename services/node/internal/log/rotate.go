package log

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Rotation rotates a container's log files.
type Rotation struct {
	// Size is the size in bytes at which a file is rotated.
	Size int64
	// Files is how many files are kept, including the current one; at least 2.
	Files int
	// Reopen makes the runtime reopen the log file.
	Reopen func(ctx context.Context, container string) error
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

const (
	tmpSuffix  = ".tmp"
	gzSuffix   = ".gz"
	stampShape = "20060102-150405.000"
)

// Rotate renames a container's log file if it is too large, and removes the oldest rotated
// files. The runtime keeps writing to the file that it has open until Reopen, so nothing is
// lost.
func (r Rotation) Rotate(ctx context.Context, container, name string) error {
	root, err := openFolder(filepath.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return r.Reopen(ctx, container)
	}
	if err != nil {
		return err
	}
	defer root.Close()
	base := filepath.Base(name)
	info, err := root.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		// A rotation was interrupted between the rename and Reopen.
		return r.Reopen(ctx, container)
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", name)
	}
	if info.Size() < r.Size {
		return nil
	}
	old, err := entries(root, base+".")
	if err != nil {
		return err
	}
	kept := old[:0]
	for _, f := range old {
		if strings.HasSuffix(f, tmpSuffix) {
			_ = root.Remove(f) // left by an interrupted compression
			continue
		}
		kept = append(kept, f)
	}
	sort.Strings(kept) // their names are timestamps
	for len(kept) > max(r.Files, 2)-2 {
		if err := root.RemoveAll(kept[0]); err != nil {
			return err
		}
		kept = kept[1:]
	}
	for _, f := range kept {
		if strings.HasSuffix(f, gzSuffix) {
			continue
		}
		if err := compress(root, f); err != nil {
			return fmt.Errorf("compress %s: %w", f, err)
		}
	}
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	aside := base + "." + now().UTC().Format(stampShape)
	if err := root.Rename(base, aside); err != nil {
		return err
	}
	if err := r.Reopen(ctx, container); err != nil {
		// The runtime still writes to the old file: restore its name.
		return errors.Join(fmt.Errorf("reopen log of %s: %w", container, err), root.Rename(aside, base))
	}
	return nil
}

// compress replaces a file with its compressed form. It removes anything that is not a
// regular file, because that was never a log.
func compress(root *os.Root, name string) error {
	if info, err := root.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, root.RemoveAll(name))
	}
	in, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, errors.New("not a regular file"))
	}
	tmp := name + tmpSuffix
	out, err := root.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	gz := gzip.NewWriter(out)
	_, err = io.Copy(gz, in)
	err = errors.Join(err, gz.Close(), out.Close())
	if err == nil {
		err = root.Rename(tmp, name+gzSuffix)
	}
	if err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	return root.Remove(name)
}
