package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// secretText matches what only its owner may read: private keys, bootstrap tokens, and the
	// key in a kubeconfig.
	secretText = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----|client-key-data:|(?m)^\s*(?:token: )?[a-z0-9]{6}\.[a-z0-9]{16}\s*$`)
	// maxSecret is the size in bytes beyond which a file is not searched for secrets.
	maxSecret int64 = 1 << 20
)

// secrets runs `keel pki` with a umask of 0, and checks what other users of the machine could
// read.
func secrets(ctx context.Context, o *options) (string, []string, error) {
	dir, err := os.MkdirTemp("", "audit-pki-*")
	if err != nil {
		return "", nil, err
	}
	defer os.RemoveAll(dir)
	keel, err := filepath.Abs(filepath.Join(o.bin, "keel"))
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", `umask 0; exec "$0" pki --dir "$1" --node node-0,node-1`, keel, filepath.Join(dir, "pki"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("keel pki: %w: %s", err, bytes.TrimSpace(out))
	}
	found, faults, err := readableSecrets(filepath.Join(dir, "pki"))
	if err == nil && found == 0 {
		err = errors.New("keel pki wrote no secrets, so there is nothing to check")
	}
	return fmt.Sprintf("%d files with secrets from `keel pki`", found), faults, err
}

// readableSecrets counts the files with secrets below a directory. It reports those that other
// users may read, and directories that other users may write to.
func readableSecrets(dir string) (found int, faults []string, err error) {
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && info.Mode().Perm()&0o022 != 0:
			faults = append(faults, fmt.Sprintf("%s has mode %04o: others may write to it", file, info.Mode().Perm()))
		case info.Mode().IsRegular() && info.Size() <= maxSecret:
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if !secretText.Match(data) {
				break
			}
			found++
			if info.Mode().Perm()&0o077 != 0 {
				faults = append(faults, fmt.Sprintf("%s contains a secret and has mode %04o", file, info.Mode().Perm()))
			}
		}
		return nil
	})
	return found, faults, err
}

// modes checks the modes of the repository's files, of the built programs, and of the files in
// the images that have been built.
func modes(ctx context.Context, o *options) (string, []string, error) {
	tracked, faults, err := trackedModes(ctx, o.root)
	if err != nil {
		return "", nil, err
	}
	programs, err := filepath.Glob(filepath.Join(o.bin, "*"))
	if err != nil {
		return "", nil, err
	}
	more, err := filepath.Glob(filepath.Join(o.bin, "runtime", "*"))
	if err != nil {
		return "", nil, err
	}
	count := 0
	for _, program := range append(programs, more...) {
		info, err := os.Stat(program)
		if err != nil {
			return "", nil, err
		}
		if !info.Mode().IsRegular() {
			continue
		}
		count++
		faults = append(faults, privileged(program, info.Mode())...)
	}
	archives, err := filepath.Glob(filepath.Join(o.bin, "images", "*.tar"))
	if err != nil {
		return "", nil, err
	}
	for _, archive := range archives {
		f, err := imageModes(archive)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", archive, err)
		}
		faults = append(faults, f...)
	}
	return fmt.Sprintf("%d tracked files, %d programs, %d images", tracked, count, len(archives)), faults, nil
}

// privileged reports what gives a program more rights than its caller has.
func privileged(file string, mode fs.FileMode) (faults []string) {
	if mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		faults = append(faults, fmt.Sprintf("%s is setuid or setgid (%s)", file, mode))
	}
	if n, err := unix.Getxattr(file, "security.capability", nil); err == nil && n > 0 {
		faults = append(faults, file+" has file capabilities")
	}
	return faults
}

// trackedModes checks that, of the files that git tracks, exactly the scripts are executable.
func trackedModes(ctx context.Context, root string) (count int, faults []string, err error) {
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-s", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return 0, nil, fmt.Errorf("git ls-files in %s: %w", root, err)
	}
	for entry := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		about, name, ok := strings.Cut(entry, "\t")
		if !ok {
			return 0, nil, fmt.Errorf("git ls-files: unexpected entry %q", entry)
		}
		mode := strings.Fields(about)[0]
		count++
		if mode != "100644" && mode != "100755" {
			faults = append(faults, fmt.Sprintf("%s is not a regular file (git mode %s)", name, mode))
			continue
		}
		data, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, but not committed yet
		}
		if err != nil {
			return 0, nil, err
		}
		if script := bytes.HasPrefix(data, []byte("#!")); script != (mode == "100755") {
			faults = append(faults, fmt.Sprintf("%s has git mode %s, but is a script: %t", name, mode, script))
		}
	}
	return count, faults, nil
}

// imageModes checks every file in an image archive in docker's format.
func imageModes(archive string) (faults []string, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var layers []string
	err = entries(f, func(h *tar.Header, r io.Reader) error {
		if h.Name != "manifest.json" {
			return nil
		}
		var images []struct{ Layers []string }
		if err := json.NewDecoder(r).Decode(&images); err != nil {
			return err
		}
		for _, i := range images {
			layers = append(layers, i.Layers...)
		}
		return nil
	})
	if err == nil && len(layers) == 0 {
		err = errors.New("the archive contains no image")
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, l := range layers {
		wanted[l] = true
	}
	return faults, entries(f, func(h *tar.Header, r io.Reader) error {
		if !wanted[h.Name] {
			return nil
		}
		if strings.HasSuffix(h.Name, ".gz") {
			z, err := gzip.NewReader(r)
			if err != nil {
				return err
			}
			defer z.Close()
			r = z
		}
		return entries(r, func(h *tar.Header, _ io.Reader) error {
			faults = append(faults, entryFaults(filepath.Base(archive), h)...)
			return nil
		})
	})
}

// entryFaults checks a file of an image.
func entryFaults(image string, h *tar.Header) (faults []string) {
	name := image + ": /" + path.Clean(h.Name)
	if h.Mode&0o6000 != 0 && h.Typeflag == tar.TypeReg {
		faults = append(faults, fmt.Sprintf("%s is setuid or setgid (%04o)", name, h.Mode))
	}
	if h.PAXRecords["SCHILY.xattr.security.capability"] != "" {
		faults = append(faults, name+" has file capabilities")
	}
	if h.Mode&0o022 != 0 && (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir && h.Mode&0o1000 == 0) {
		faults = append(faults, fmt.Sprintf("%s may be written by others (%04o)", name, h.Mode))
	}
	return faults
}

// entries calls f for each entry of a tar archive.
func entries(r io.Reader, f func(*tar.Header, io.Reader) error) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(h, t)
		}
		if err != nil {
			return err
		}
	}
}
