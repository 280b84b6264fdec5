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

// Rotation bounds a container's log files.
type Rotation struct {
	// Size in bytes at which a file is put aside.
	Size int64
	// Files is how many are kept, the present one included; at least 2.
	Files int
	// Reopen makes the runtime open the file anew.
	Reopen func(ctx context.Context, container string) error
	// Now may be nil.
	Now func() time.Time
}

const (
	tmpSuffix  = ".tmp"
	gzSuffix   = ".gz"
	stampShape = "20060102-150405.000"
)

// Rotate puts a container's log file aside if it is too large, and removes the
// oldest ones. The runtime goes on writing into the file that it has open until
// it is told, so that nothing is lost.
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
		// A rotation was interrupted between its two steps.
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
	sort.Strings(kept) // their names are times
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
		// The runtime still writes to the old file: give it its name back.
		return errors.Join(fmt.Errorf("reopen log of %s: %w", container, err), root.Rename(aside, base))
	}
	return nil
}

// compress replaces a file by its compressed form. What is no regular file is
// removed: no log ever was one.
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
