// Command image-builder builds container images from Debian packages and local files, without a
// registry, a daemon or root. Each YAML spec describes one image and results in one archive in
// docker's format.
//
//	image-builder --out DIR [--tag TAG] SPEC.yaml…
//
// apt resolves the packages and their dependencies. Their maintainer scripts are not run, so a
// spec lists users, links and directories itself. The same packages and files result in the
// same image, byte for byte.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"sigs.k8s.io/yaml"
)

// Spec describes an image.
type Spec struct {
	// Name is the image's reference, including its tag.
	Name string `json:"name"`
	// Packages are Debian packages, which are installed with their dependencies. Those in
	// Without are left out, even if they are dependencies.
	Packages []string `json:"packages,omitempty"`
	Without  []string `json:"without,omitempty"`
	// Exclude are paths in the packages to leave out. A path that ends with a slash is a
	// directory with all its content.
	Exclude []string `json:"exclude,omitempty"`
	// Files are added after the packages.
	Files []File `json:"files,omitempty"`
	// Users are added to /etc/passwd and /etc/group.
	Users []User `json:"users,omitempty"`
	// Groups are added to /etc/group, besides those of the users.
	Groups []Group `json:"groups,omitempty"`
	// The remaining fields are the image's configuration.
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	StopSignal string            `json:"stopSignal,omitempty"`
	Ports      []string          `json:"ports,omitempty"`
}

// File is a file, link or directory. A path that ends with a slash is a directory.
type File struct {
	Path string `json:"path"`
	// At most one of these is set. Content is the text of the file. Source is a file, relative
	// to the spec. Link is the target of a symbolic link. Go is a main package to build
	// statically, as `go build` names it, relative to the spec. Bundle is a directory of the
	// packages whose *.crt files are concatenated, as Debian's update-ca-certificates does.
	Content string `json:"content,omitempty"`
	Source  string `json:"source,omitempty"`
	Link    string `json:"link,omitempty"`
	Go      string `json:"go,omitempty"`
	Bundle  string `json:"bundle,omitempty"`
	// Mode is octal; default 0644, or 0755 for directories and programs.
	Mode string `json:"mode,omitempty"`
	// Owner is the numeric id of both the user and the group.
	Owner int `json:"owner,omitempty"`
}

// User is a line of /etc/passwd.
type User struct {
	Name string `json:"name"`
	ID   int    `json:"id"`
	Home string `json:"home,omitempty"`
}

// Group is a line of /etc/group.
type Group struct {
	Name    string   `json:"name"`
	ID      int      `json:"id"`
	Members []string `json:"members,omitempty"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := flag.String("out", ".", "directory to write the archives to")
	tag := flag.String("tag", "", "tag that replaces the ones in the specs")
	cache := flag.String("cache", filepath.Join(os.TempDir(), "keelson-debs"), "directory for downloaded packages")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "image-builder: specify at least one spec")
		os.Exit(2)
	}
	for _, path := range flag.Args() {
		archive, err := build(ctx, path, *out, *cache, *tag)
		if err != nil {
			fmt.Fprintf(os.Stderr, "image-builder: %s: %v\n", path, err)
			os.Exit(1)
		}
		fmt.Println(archive)
	}
}

func build(ctx context.Context, path, out, cache, tag string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var spec Spec
	if err := yaml.UnmarshalStrict(data, &spec); err != nil {
		return "", err
	}
	ref, err := name.NewTag(spec.Name)
	if err != nil {
		return "", err
	}
	if tag != "" {
		if ref, err = name.NewTag(ref.Repository.Name() + ":" + tag); err != nil {
			return "", err
		}
	}
	debs, err := download(ctx, cache, spec.Packages)
	if err != nil {
		return "", err
	}
	debs = slices.DeleteFunc(debs, func(deb string) bool {
		pkg, _, _ := strings.Cut(filepath.Base(deb), "_")
		return slices.Contains(spec.Without, pkg)
	})
	tmp, err := os.MkdirTemp("", "image-builder-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	layerFile := filepath.Join(tmp, "layer.tar")
	if err := writeLayer(ctx, layerFile, filepath.Dir(path), tmp, spec, debs); err != nil {
		return "", err
	}
	layer, err := tarball.LayerFromFile(layerFile)
	if err != nil {
		return "", err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return "", err
	}
	if image, err = configure(image, spec); err != nil {
		return "", err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	archive := filepath.Join(out, strings.TrimSuffix(filepath.Base(path), ".yaml")+".tar")
	if err := tarball.WriteToFile(archive+".new", ref, image); err != nil {
		return "", errors.Join(err, os.Remove(archive+".new"))
	}
	return archive, os.Rename(archive+".new", archive)
}

func configure(image v1.Image, spec Spec) (v1.Image, error) {
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = "amd64", "linux"
	c := &file.Config
	c.Entrypoint, c.Cmd, c.User, c.WorkingDir, c.StopSignal = spec.Entrypoint, spec.Cmd, spec.User, spec.WorkingDir, spec.StopSignal
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, k := range sortedKeys(spec.Env) {
		c.Env = append(c.Env, k+"="+spec.Env[k])
	}
	for _, p := range spec.Ports {
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		c.ExposedPorts[p] = struct{}{}
	}
	return mutate.ConfigFile(image, file)
}
