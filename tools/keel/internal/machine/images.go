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

// lookEvery is how often the directory of images is looked at.
const lookEvery = time.Second

// Images keeps a node's images up with a directory of archives: whatever is put
// there, before or after the start, is imported once.
type Images struct {
	// Dir holds the archives, NAME.tar.
	Dir string
	// Marks is where it is remembered what was imported, beside the images.
	Marks string
	// Import loads one archive and names its images.
	Import func(ctx context.Context, file string) ([]string, error)

	// seen and failed are files as they were at the last look, and when they could
	// not be imported.
	seen, failed map[string]string
}

// Run imports until ctx ends.
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

// look is one pass. A file that is still being written is left for later: only
// what has not changed between two looks is imported, except at the start.
func (i *Images) look(ctx context.Context, settled bool) {
	files, err := filepath.Glob(filepath.Join(i.Dir, "*.tar"))
	if err != nil {
		return // a pattern of our own
	}
	// What is small is there soon, and need not wait for what is not.
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
			// It may have been half written: another stamp is another try.
			slog.WarnContext(ctx, "image archive was not imported", "file", file, "error", err)
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

func (i *Images) mark(file string) string {
	return filepath.Join(i.Marks, "imported-"+filepath.Base(file))
}

func (i *Images) done(ctx context.Context, file string) string {
	data, err := os.ReadFile(i.mark(file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.WarnContext(ctx, "what was imported is not known", "file", file, "error", err)
	}
	return string(data)
}

func sizeOf(file string) int64 {
	if st, err := os.Stat(file); err == nil {
		return st.Size()
	}
	return 0
}

// stampOf changes with a file's content.
func stampOf(file string) (string, error) {
	st, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %d", st.Size(), st.ModTime().UnixNano()), nil
}
