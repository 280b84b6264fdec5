package snapshot

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrFile is wrapped by every error that is caused by the content of the file.
var ErrFile = errors.New("not a usable snapshot")

// unusable returns an error that names the file and wraps ErrFile.
func unusable(path, text string, args ...any) error {
	return fmt.Errorf("%s: %w: %s", path, ErrFile, fmt.Sprintf(text, args...))
}

// source is a verified snapshot whose parts were extracted to a working directory.
type source struct {
	// manifest is nil for a snapshot that etcd took.
	manifest *Manifest
	// sum identifies the content. It has 64 hexadecimal digits.
	sum string
	// etcd is the path of etcd's database without its hash, and raft that of the transient
	// store's state, or "" if the snapshot has none.
	etcd, raft string
	size       int64
}

const (
	// maxSmall bounds the size in bytes of the manifest and of SHA256SUMS.
	maxSmall = 1 << 20
	// boltMagic is the magic number of bbolt, at offset boltMagicAt of the first page.
	boltMagic, boltMagicAt = 0xED0CDAED, 16
	// sectorSize divides the size of an etcd database.
	sectorSize = 512
)

// open verifies the file and extracts its parts to the directory work.
func open(path, work string) (_ *source, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, unusable(path, "it is not a regular file")
	}
	s := &source{size: st.Size()}
	if err := enough(work, st.Size()); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(f, 1<<20)
	head, err := in.Peek(boltMagicAt + 4)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case len(head) == boltMagicAt+4 && binary.LittleEndian.Uint32(head[boltMagicAt:]) == boltMagic:
		err = s.takeEtcd(path, in, st.Size(), work)
	default:
		err = s.takeArchive(path, in, work)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// enough returns an error if the file system of dir has fewer than bytes bytes free.
func enough(dir string, bytes int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < bytes {
		return fmt.Errorf("%s has %d MiB free, and %d MiB are needed: make room and repeat", dir, free>>20, bytes>>20+1)
	}
	return nil
}

// takeEtcd extracts a file that `etcdctl snapshot save` wrote.
func (s *source) takeEtcd(path string, in io.Reader, size int64, work string) error {
	switch size % sectorSize {
	case sha256.Size:
	case 0:
		return unusable(path, "it is an etcd database without the hash that `etcdctl snapshot save` appends (copied from a data directory?), so that it cannot be verified")
	default:
		return unusable(path, "it is an etcd snapshot that was cut off or modified: take it again")
	}
	s.etcd = filepath.Join(work, etcdFile)
	sum, err := s.database(in, size)
	if err != nil {
		return named(path, err)
	}
	s.sum = sum
	return nil
}

// database writes etcd's database to s.etcd, and verifies and removes the SHA-256 hash at its
// end, which it returns in hexadecimal.
func (s *source) database(in io.Reader, size int64) (string, error) {
	hash := sha256.New()
	err := create(s.etcd, func(out io.Writer) error {
		_, err := io.CopyN(io.MultiWriter(out, hash), in, size-sha256.Size)
		return err
	})
	if err != nil {
		return "", err
	}
	var want [sha256.Size]byte
	if _, err := io.ReadFull(in, want[:]); err != nil {
		return "", err
	}
	if got := hash.Sum(nil); !bytes.Equal(got, want[:]) {
		return "", fmt.Errorf("%w: etcd's part is damaged: its SHA-256 is %x, expected %x", ErrFile, got, want)
	}
	return hex.EncodeToString(want[:]), nil
}

// named adds the file's name to an error, and explains an unexpected end and an invalid header.
func named(path string, err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return unusable(path, "it was cut off: take it again")
	case errors.Is(err, tar.ErrHeader):
		return unusable(path, "it is neither a snapshot of Keelson nor one of etcd, or is damaged")
	}
	return fmt.Errorf("%s: %w", path, err)
}

// create writes a file. It has been flushed to disk when create returns nil.
func create(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := write(f); err != nil {
		return err
	}
	return f.Sync()
}

// takeArchive extracts a file in Keelson's own format.
func (s *source) takeArchive(path string, in io.Reader, work string) error {
	r := tar.NewReader(in)
	sums := map[string]string{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			if len(sums) == 0 {
				return unusable(path, "it is empty")
			}
			return unusable(path, "it was cut off: take it again")
		}
		if err != nil {
			return named(path, err)
		}
		if s.manifest == nil && h.Name != manifestFile {
			return unusable(path, "it is a tar archive, but not a snapshot of Keelson")
		}
		if _, twice := sums[h.Name]; twice {
			return unusable(path, "it contains %s twice", h.Name)
		}
		hash := sha256.New()
		part := io.TeeReader(r, hash)
		switch h.Name {
		case manifestFile:
			err = s.readManifest(path, part)
		case raftFile:
			s.raft = filepath.Join(work, raftFile)
			err = create(s.raft, func(out io.Writer) error { _, err := io.Copy(out, part); return err })
		case etcdFile:
			s.etcd = filepath.Join(work, etcdFile)
			if h.Size < sha256.Size {
				return unusable(path, "etcd's part is too short: %d bytes", h.Size)
			}
			_, err = s.database(part, h.Size)
		case sumsFile:
			text, err := small(r)
			if err != nil {
				return named(path, err)
			}
			return s.check(path, text, sums)
		default:
			return unusable(path, "it contains an unknown part %q: it was probably written by a newer version of Keelson", h.Name)
		}
		if err != nil {
			return named(path, err)
		}
		sums[h.Name] = hex.EncodeToString(hash.Sum(nil))
	}
}

// small reads at most maxSmall bytes.
func small(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSmall+1))
	if err == nil && len(data) > maxSmall {
		err = fmt.Errorf("%w: it contains a text of more than %d bytes", ErrFile, maxSmall)
	}
	return data, err
}

func (s *source) readManifest(path string, r io.Reader) error {
	data, err := small(r)
	if err != nil {
		return err
	}
	m := &Manifest{}
	if err := json.Unmarshal(data, m); err != nil || m.Format != format {
		return unusable(path, "its manifest is damaged, or not one of Keelson's")
	}
	if m.Version < 1 || m.Version > Version {
		return unusable(path, "its format has version %d, but this program reads up to %d: use the version of Keelson that wrote it (%s) or a newer one", m.Version, Version, m.Program)
	}
	s.manifest = m
	return nil
}

// check compares the hashes of the parts with SHA256SUMS, the last file of the archive.
func (s *source) check(path string, text []byte, got map[string]string) error {
	want := map[string]string{}
	for line := range strings.Lines(string(text)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok {
			return unusable(path, "its %s is damaged", sumsFile)
		}
		want[name] = sum
	}
	for _, name := range []string{manifestFile, raftFile, etcdFile} {
		switch {
		case got[name] == "":
			return unusable(path, "it contains no %s", name)
		case got[name] != want[name]:
			return unusable(path, "it is damaged: the SHA-256 of %s is %s, expected %s", name, got[name], want[name])
		}
	}
	if len(want) != len(got) {
		return unusable(path, "its %s does not list the same parts as it contains", sumsFile)
	}
	all := sha256.Sum256(slices.Clone(text))
	s.sum = hex.EncodeToString(all[:])
	return nil
}
