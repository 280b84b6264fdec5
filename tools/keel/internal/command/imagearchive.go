package command

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"keelson.dev/tools/keel/internal/cluster"
)

// maxManifest bounds how much is read of an archive's manifest or index.
const maxManifest = 4 << 20

// errNoImage is the error for an archive without an image in a format that nodes can load.
var errNoImage = errors.New("not an image: expected the output of `docker save`, or an OCI image layout, as .tar or .tar.gz")

// plain decompresses an archive if necessary. Data that is neither a tar archive nor compressed
// by gzip is refused after its first bytes.
func plain(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, _ := b.Peek(512)
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, errNoImage
		}
		b = bufio.NewReaderSize(z, 64<<10)
		head, _ = b.Peek(512)
	}
	if len(head) < 512 || !bytes.Equal(head[257:262], []byte("ustar")) {
		return nil, errNoImage
	}
	return b, nil
}

// imagesIn returns the names of the images in an archive, from docker's manifest.json or the
// index.json of an OCI layout. An image may have no name.
func imagesIn(r io.Reader) (names []string, err error) {
	found := false
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the archive is damaged: %w", err)
		}
		switch path.Clean(h.Name) {
		case "manifest.json":
			var images []struct {
				Config   string
				RepoTags []string
				Layers   []string
			}
			if json.NewDecoder(io.LimitReader(t, maxManifest)).Decode(&images) != nil {
				continue
			}
			for _, i := range images {
				found = found || i.Config != ""
				names = append(names, i.RepoTags...)
			}
		case "index.json":
			var index struct {
				Manifests []struct {
					Digest      string            `json:"digest"`
					Annotations map[string]string `json:"annotations"`
				} `json:"manifests"`
			}
			if json.NewDecoder(io.LimitReader(t, maxManifest)).Decode(&index) != nil {
				continue
			}
			for _, m := range index.Manifests {
				found = found || m.Digest != ""
				if name := m.Annotations["io.containerd.image.name"]; name != "" {
					names = append(names, name)
				}
			}
		}
	}
	if !found {
		return nil, errNoImage
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// keep copies an archive into the cluster's home, for nodes that are added later, after
// checking that it contains an image. "-" means standard input.
func keep(c *cluster.Cluster, file string, stdin io.Reader) (kept string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
	}()
	in := stdin
	name := ""
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", errors.Unwrap(err) // the caller adds the path
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			return "", errors.New("not a regular file")
		}
		name = filepath.Base(file)
		for _, end := range []string{".gz", ".tgz", ".tar"} {
			name = strings.TrimSuffix(name, end)
		}
		r, err := plain(f)
		if err != nil {
			return "", err
		}
		if _, err := imagesIn(r); err != nil {
			return "", err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
		in = f
		kept = c.Path("images", name+".tar")
		if same, err := filepath.Abs(file); err == nil && same == kept {
			return kept, nil
		}
	}
	r, err := plain(in)
	if err != nil {
		return "", err
	}
	out, err := os.CreateTemp(c.Path("images"), ".new-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	digest := sha256.New()
	if _, err = io.Copy(io.MultiWriter(out, digest), r); err != nil {
		return "", err
	}
	if name == "" {
		if _, err := out.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
		if _, err := imagesIn(out); err != nil {
			return "", err
		}
		kept = c.Path("images", "stdin-"+hex.EncodeToString(digest.Sum(nil)[:6])+".tar")
	}
	if err := out.Close(); err != nil {
		return "", err
	}
	return kept, os.Rename(out.Name(), kept)
}

// reference returns the full name of an image, as containerd stores it.
func reference(name string) string {
	first, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		name = "docker.io/" + first + "/" + rest
	}
	if i := strings.LastIndexByte(name, '/'); !strings.ContainsAny(name[i:], ":@") {
		name += ":latest"
	}
	return name
}

// archivesOf returns the kept archives of images. It returns an error if one of them also
// contains other images, because all images of an archive must be removed together.
func archivesOf(c *cluster.Cluster, images []string) (archives []string, err error) {
	files, err := filepath.Glob(c.Path("images", "*.tar"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		names, err := imagesIn(f)
		f.Close()
		if err != nil {
			continue // no node can have loaded it
		}
		var meant, others []string
		for _, n := range names {
			if slices.Contains(images, reference(n)) {
				meant = append(meant, n)
			} else {
				others = append(others, n)
			}
		}
		if len(meant) > 0 && len(others) > 0 {
			return nil, fmt.Errorf("%s was loaded from an archive that also contains %s: name those too, because new nodes would load it again otherwise", meant[0], strings.Join(others, ", "))
		}
		if len(meant) > 0 {
			archives = append(archives, file)
		}
	}
	return archives, nil
}
