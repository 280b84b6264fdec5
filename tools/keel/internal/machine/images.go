package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// lookEvery is the interval between two reads of the directory of images.
const lookEvery = time.Second

// Images imports every archive in a directory into a node once, including archives that are
// added later.
type Images struct {
	// Dir contains the archives, NAME.tar.
	Dir string
	// Marks is the directory that records which archives were imported. It is stored with the
	// images.
	Marks string
	// Import loads one archive and returns the names of its images.
	Import func(ctx context.Context, file string) ([]string, error)

	// seen contains the stamps of the files at the last pass, failed those of the files that
	// could not be imported.
	seen, failed map[string]string
}

// Run imports archives until ctx ends.
func (i *Images) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	first := true
	for {
		i.look(ctx, first)
		first = false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look is one pass over the directory. A file may still be being written, so unless settled is
// true, look imports only files that have not changed since the last pass. At the start all
// files count as settled.
func (i *Images) look(ctx context.Context, settled bool) {
	files, err := filepath.Glob(filepath.Join(i.Dir, "*.tar"))
	if err != nil {
		return // cannot happen: the pattern is constant
	}
	// Import small files first, so that they need not wait for large ones.
	slices.SortStableFunc(files, func(a, b string) int { return cmp.Compare(sizeOf(a), sizeOf(b)) })
	seen := map[string]string{}
	for _, file := range files {
		stamp, err := stampOf(file)
		if err != nil {
			continue
		}
		seen[file] = stamp
		if i.done(ctx, file) == stamp || i.failed[file] == stamp || !settled && i.seen[file] != stamp {
			continue
		}
		began := time.Now()
		names, err := i.Import(ctx, file)
		if err == nil {
			err = os.WriteFile(i.mark(file), []byte(stamp), 0o600)
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			// The file may have been incomplete. It is tried again when its stamp changes.
			slog.WarnContext(ctx, "cannot import image archive", "file", file, "error", err)
			if i.failed == nil {
				i.failed = map[string]string{}
			}
			i.failed[file] = stamp
			continue
		}
		slog.InfoContext(ctx, "image archive imported", "file", file, "images", names, "took", time.Since(began))
	}
	i.seen = seen
}

// mark returns the path of the file that records the stamp of an imported archive.
func (i *Images) mark(file string) string {
	return filepath.Join(i.Marks, "imported-"+filepath.Base(file))
}

// done returns the stamp of the archive when it was imported, or "" if it was not.
func (i *Images) done(ctx context.Context, file string) string {
	data, err := os.ReadFile(i.mark(file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.WarnContext(ctx, "cannot read which version of the archive was imported", "file", file, "error", err)
	}
	return string(data)
}

func sizeOf(file string) int64 {
	if st, err := os.Stat(file); err == nil {
		return st.Size()
	}
	return 0
}

// stampOf returns a text that changes with a file's size and modification time.
func stampOf(file string) (string, error) {
	st, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %d", st.Size(), st.ModTime().UnixNano()), nil
}
