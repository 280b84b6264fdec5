package command

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keelson.dev/tools/keel/internal/cluster"
)

// archive returns a tar archive of files, compressed if zip is set.
func archive(t *testing.T, zip bool, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	var to io.WriteCloser = nopCloser{&out}
	if zip {
		to = gzip.NewWriter(&out)
	}
	w := tar.NewWriter(to)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), to.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func dockers(tags ...string) map[string]string {
	return map[string]string{"a.json": "{}", "manifest.json": `[{"Config":"a.json","RepoTags":["` + strings.Join(tags, `","`) + `"],"Layers":["l.tar"]}]`}
}

// imagesHome returns a cluster with a directory for archives.
func imagesHome(t *testing.T) *cluster.Cluster {
	t.Helper()
	c := &cluster.Cluster{Home: t.TempDir()}
	if err := os.Mkdir(c.Path("images"), 0o700); err != nil {
		t.Fatal(err)
	}
	return c
}

// Archives are kept as uncompressed tar files, whatever their format. Files that are not images
// leave nothing behind.
func TestKeepImages(t *testing.T) {
	oci := map[string]string{"oci-layout": "{}", "index.json": `{"manifests":[{"digest":"sha256:1","annotations":{"io.containerd.image.name":"example.com/b:1"}}]}`}
	for name, c := range map[string]struct {
		file string
		data []byte
		ok   bool
	}{
		"docker's format":       {"a.tar", archive(t, false, dockers("a:1")), true},
		"compressed":            {"a.tar.gz", archive(t, true, dockers("a:1")), true},
		"compressed, tgz":       {"a.tgz", archive(t, true, dockers("a:1")), true},
		"OCI format":            {"b.tar", archive(t, false, oci), true},
		"not a tar archive":     {"a.tar", bytes.Repeat([]byte("text\n"), 1000), false},
		"empty":                 {"a.tar", nil, false},
		"tar without images":    {"a.tar", archive(t, false, map[string]string{"etc/passwd": "root"}), false},
		"tar.gz without images": {"a.tar.gz", archive(t, true, map[string]string{"etc/passwd": "root"}), false},
		"empty manifest":        {"a.tar", archive(t, false, map[string]string{"manifest.json": "[]"}), false},
		"cut off":               {"a.tar.gz", archive(t, true, dockers("a:1"))[:60], false},
	} {
		for _, by := range []string{"file", "standard input"} {
			t.Run(name+" by "+by, func(t *testing.T) {
				home := imagesHome(t)
				file, stdin := filepath.Join(t.TempDir(), c.file), bytes.NewReader(nil)
				if err := os.WriteFile(file, c.data, 0o600); err != nil {
					t.Fatal(err)
				}
				if by != "file" {
					file, stdin = "-", bytes.NewReader(c.data)
				}
				kept, err := keep(home, file, stdin)
				if (err == nil) != c.ok {
					t.Fatalf("kept %q, %v", kept, err)
				}
				left, globErr := filepath.Glob(home.Path("images", "*"))
				hidden, _ := filepath.Glob(home.Path("images", ".*"))
				if left = append(left, hidden...); globErr != nil || c.ok != slices.Equal(left, []string{kept}) {
					t.Errorf("files are %v, want %q", left, kept)
				}
				if !c.ok {
					return
				}
				f, err := os.Open(kept)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if names, err := imagesIn(f); err != nil || len(names) != 1 || !strings.HasSuffix(kept, ".tar") {
					t.Errorf("%s contains %v, %v", kept, names, err)
				}
			})
		}
	}
	if _, err := keep(imagesHome(t), filepath.Join(t.TempDir(), "none.tar"), nil); err == nil || strings.Count(err.Error(), "none.tar") != 1 {
		t.Errorf("keep a missing file: %v", err)
	}
}

func TestReferences(t *testing.T) {
	for name, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "nginx:1": "docker.io/library/nginx:1", "me/shop": "docker.io/me/shop:latest",
		"keelson.dev/pause:1": "keelson.dev/pause:1", "localhost/a": "localhost/a:latest", "host:5000/a": "host:5000/a:latest",
		"example.com/a@sha256:1": "example.com/a@sha256:1",
	} {
		if got := reference(name); got != want {
			t.Errorf("reference(%s) is %s, want %s", name, got, want)
		}
	}
}

// An archive is removed with its images, but only with all of them.
func TestArchivesOfImages(t *testing.T) {
	c := imagesHome(t)
	for name, tags := range map[string][]string{"one": {"one:1"}, "two": {"two:1", "three:1"}} {
		if err := os.WriteFile(c.Path("images", name+".tar"), archive(t, false, dockers(tags...)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := archivesOf(c, []string{reference("one:1")})
	if err != nil || !slices.Equal(got, []string{c.Path("images", "one.tar")}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := archivesOf(c, []string{reference("two:1")}); err == nil || !strings.Contains(err.Error(), "three:1") {
		t.Errorf("some images of an archive: %v, %v", got, err)
	}
	if got, err := archivesOf(c, []string{reference("two:1"), reference("three:1")}); err != nil || len(got) != 1 {
		t.Errorf("all images of an archive: %v, %v", got, err)
	}
}

// A reason is reported once, and without the runtime's noise.
func TestErrorsOfNodes(t *testing.T) {
	c := &cluster.Cluster{Nodes: []cluster.Node{{Name: "node-0"}, {Name: "node-1"}, {Name: "node-2"}}}
	err := onNodes(c, func(node string) error { return errors.New(node + ": no space") })
	if err == nil || err.Error() != "no space" {
		t.Errorf("same error on all nodes: %v", err)
	}
	err = onNodes(c, func(node string) error {
		if node == "node-1" {
			return nil
		}
		return errors.New("no space")
	})
	if err == nil || err.Error() != "node-0, node-2: no space" {
		t.Errorf("same error on some nodes: %v", err)
	}
	noise := errors.New("node-0: import /x.tar: exit status 1: time=\"2026\" level=warning msg=\"old\"\nctr: unrecognized image format")
	if got := withoutNoise(noise).Error(); got != "unrecognized image format" {
		t.Errorf("without noise: %q", got)
	}
}
