package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// epoch is the time stamp of every file, so that images are reproducible byte for byte.
var epoch = time.Unix(0, 0)

// unwanted are the directories left out of images: documentation and translations.
var unwanted = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/", "usr/share/bug/"}

// merged are the directories that Debian has merged into /usr.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// layer writes the tar file of one layer. The first entry with a path wins.
type layer struct {
	w       *tar.Writer
	exclude []string
	dirs    map[string]bool
	seen    map[string]bool
}

func writeLayer(ctx context.Context, file, specDir, tmp string, spec Spec, debs []string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	l := &layer{w: tar.NewWriter(f), exclude: spec.Exclude, dirs: map[string]bool{}, seen: map[string]bool{}}
	// The spec's own files come first, so that they win over those of packages.
	if err := l.addSpec(ctx, specDir, tmp, spec, debs); err != nil {
		return err
	}
	if len(debs) > 0 {
		for _, d := range merged {
			if err := l.link(d, "usr/"+d); err != nil {
				return err
			}
		}
	}
	for _, deb := range debs {
		if err := l.addPackage(ctx, deb); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
	}
	for _, d := range []struct {
		path string
		mode int64
	}{{"tmp", 0o1777}, {"var/tmp", 0o1777}, {"etc", 0o755}, {"proc", 0o755}, {"sys", 0o755}, {"dev", 0o755}, {"run", 0o755}} {
		if err := l.dir(d.path, d.mode, 0); err != nil {
			return err
		}
	}
	return errors.Join(l.w.Close(), f.Close())
}

func (l *layer) header(h *tar.Header) error {
	h.ModTime, h.AccessTime, h.ChangeTime = epoch, time.Time{}, time.Time{}
	h.Uname, h.Gname, h.PAXRecords, h.Format = "", "", nil, tar.FormatPAX
	return l.w.WriteHeader(h)
}

// parents writes the missing parent directories of a path.
func (l *layer) parents(p string) error {
	if d := path.Dir(p); d != "." && d != "/" {
		return l.dir(d, 0o755, 0)
	}
	return nil
}

func (l *layer) dir(p string, mode int64, owner int) error {
	p = strings.Trim(p, "/")
	if l.dirs[p] || l.seen[p] || p == "" || p == "." {
		return nil
	}
	if err := l.parents(p); err != nil {
		return err
	}
	l.dirs[p] = true
	return l.header(&tar.Header{Typeflag: tar.TypeDir, Name: p + "/", Mode: mode, Uid: owner, Gid: owner})
}

func (l *layer) link(p, target string) error {
	if l.seen[p] {
		return nil
	}
	if err := l.parents(p); err != nil {
		return err
	}
	l.seen[p] = true
	return l.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: p, Linkname: target, Mode: 0o777})
}

func (l *layer) file(p string, mode int64, owner int, data []byte) error {
	p = strings.Trim(p, "/")
	if l.seen[p] {
		return fmt.Errorf("%s occurs twice", p)
	}
	if err := l.parents(p); err != nil {
		return err
	}
	l.seen[p] = true
	if err := l.header(&tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: mode, Uid: owner, Gid: owner, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := l.w.Write(data)
	return err
}

// addPackage unpacks a Debian package. /bin, /sbin, /lib and /lib64 are moved into /usr.
func (l *layer) addPackage(ctx context.Context, deb string) error {
	return readPackage(ctx, deb, l.addEntry)
}

// readPackage calls f for each entry of a Debian package.
func readPackage(ctx context.Context, deb string, f func(*tar.Header, io.Reader) error) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	copyErr := func() error {
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := f(h, r); err != nil {
				return err
			}
		}
	}()
	_, _ = io.Copy(io.Discard, out)
	return errors.Join(copyErr, cmd.Wait())
}

func (l *layer) addEntry(h *tar.Header, r io.Reader) error {
	p := usr(strings.Trim(strings.TrimPrefix(h.Name, "."), "/"))
	if p == "" || l.seen[p] || l.excluded(p) || slices.ContainsFunc(unwanted, func(u string) bool { return strings.HasPrefix(p+"/", u) }) {
		return nil
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return l.dir(p, h.Mode, h.Uid)
	case tar.TypeLink:
		h.Linkname = usr(strings.Trim(strings.TrimPrefix(h.Linkname, "."), "/"))
	}
	if err := l.parents(p); err != nil {
		return err
	}
	l.seen[p] = true
	h.Name = p
	if err := l.header(h); err != nil {
		return err
	}
	_, err := io.Copy(l.w, r)
	return err
}

// excluded reports whether the spec excludes a path of the packages.
func (l *layer) excluded(p string) bool {
	return slices.ContainsFunc(l.exclude, func(x string) bool {
		x = strings.TrimPrefix(x, "/")
		return p == x || strings.HasSuffix(x, "/") && strings.HasPrefix(p+"/", x)
	})
}

// bundle concatenates the certificates below a directory of the packages.
func bundle(ctx context.Context, debs []string, dir string) ([]byte, error) {
	found := map[string][]byte{}
	for _, deb := range debs {
		err := readPackage(ctx, deb, func(h *tar.Header, r io.Reader) error {
			p := strings.TrimPrefix(h.Name, ".")
			if h.Typeflag != tar.TypeReg || !strings.HasPrefix(p, dir) || !strings.HasSuffix(p, ".crt") {
				return nil
			}
			data, err := io.ReadAll(r)
			found[p] = append(bytes.TrimRight(data, "\n"), '\n')
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no package contains certificates below %s", dir)
	}
	var out []byte
	for _, p := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[p]...)
	}
	return out, nil
}

// usr moves a path of a merged directory into /usr.
func usr(p string) string {
	for _, d := range merged {
		if p == d || strings.HasPrefix(p, d+"/") {
			return "usr/" + p
		}
	}
	return p
}

func (l *layer) addSpec(ctx context.Context, specDir, tmp string, spec Spec, debs []string) error {
	var passwd, group bytes.Buffer
	users := append([]User{{Name: "root", Home: "/root"}, {Name: "nobody", ID: 65534, Home: "/"}}, spec.Users...)
	for _, u := range users {
		home := u.Home
		if home == "" {
			home = "/"
		}
		fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:/bin/sh\n", u.Name, u.ID, u.ID, home)
		fmt.Fprintf(&group, "%s:x:%d:\n", u.Name, u.ID)
	}
	for _, g := range spec.Groups {
		fmt.Fprintf(&group, "%s:x:%d:%s\n", g.Name, g.ID, strings.Join(g.Members, ","))
	}
	if err := l.file("etc/passwd", 0o644, 0, passwd.Bytes()); err != nil {
		return err
	}
	if err := l.file("etc/group", 0o644, 0, group.Bytes()); err != nil {
		return err
	}
	for _, f := range spec.Files {
		if err := l.addFile(ctx, specDir, tmp, f, debs); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

func (l *layer) addFile(ctx context.Context, specDir, tmp string, f File, debs []string) error {
	mode := func(fallback int64) (int64, error) {
		if f.Mode == "" {
			return fallback, nil
		}
		return strconv.ParseInt(f.Mode, 8, 32)
	}
	p := strings.Trim(f.Path, "/")
	switch {
	case f.Link != "":
		return l.link(p, f.Link)
	case strings.HasSuffix(f.Path, "/"):
		m, err := mode(0o755)
		if err != nil {
			return err
		}
		return l.dir(p, m, f.Owner)
	case f.Go != "":
		out := filepath.Join(tmp, "program")
		cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w -buildid=", "-o", out, ".")
		cmd.Dir = filepath.Join(specDir, f.Go)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if msg, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w: %s", f.Go, err, msg)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			return err
		}
		return l.file(p, 0o755, f.Owner, data)
	}
	data := []byte(f.Content)
	if f.Source != "" {
		var err error
		if data, err = os.ReadFile(filepath.Join(specDir, f.Source)); err != nil {
			return err
		}
	}
	if f.Bundle != "" {
		var err error
		if data, err = bundle(ctx, debs, f.Bundle); err != nil {
			return err
		}
	}
	m, err := mode(0o644)
	if err != nil {
		return err
	}
	return l.file(p, m, f.Owner, data)
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
