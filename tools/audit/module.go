package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// goModules are the directories of the repository's modules.
var goModules = []string{
	"proto", "services/internal", "services/apiserver", "services/scheduler", "services/controller-manager",
	"services/cloud-controller", "services/node", "tools", "e2e", "deploy/demo/shop",
}

// mains are the packages of the programs in images, by module.
var mains = map[string]string{
	"services/apiserver": ".", "services/scheduler": ".", "services/controller-manager": ".", "services/cloud-controller": ".",
	"services/node": ".", "tools": "./keel", "deploy/demo/shop": ".",
}

// runtimePrograms are built from other projects' modules and shipped in the image of a node or
// next to keel.
var runtimePrograms = []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "kubectl"}

// tags are the build tags that the Makefile uses.
const tags = "grpcnotrace,fieldsv1string"

// listed is a package in the output of `go list`.
type listed struct {
	ImportPath string
	Standard   bool
	Module     *module
}

type module struct {
	Path, Version, Dir string
	Main               bool
	Replace            *module
}

// linked lists the packages that are linked into the packages of a pattern in one of the
// repository's modules.
func linked(ctx context.Context, dir, pattern string) ([]listed, error) {
	out, err := goCommand(ctx, dir, "list", "-deps", "-tags", tags, "-json=ImportPath,Standard,Module", pattern)
	if err != nil {
		return nil, err
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list in %s: %w", dir, err)
		}
		all = append(all, p)
	}
}

// goCommand runs the go command in a module, without the workspace.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s in %s: %w: %s", args[0], dir, err, bytes.TrimSpace(problems.Bytes()))
	}
	return out, nil
}

// built lists the modules that a program was built from, according to its build information,
// with their directories in the module cache.
func built(ctx context.Context, program string) ([]module, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	args := []string{"mod", "download", "-json"}
	for _, m := range append(slices.Clone(info.Deps), &info.Main) {
		if m.Replace != nil {
			m = m.Replace
		}
		// A main module that was built from its directory is one of the repository's. Its
		// dependencies are in the build information.
		if m.Version != "" && m.Version != "(devel)" && !strings.HasPrefix(m.Path, "keelson.dev/") {
			args = append(args, m.Path+"@"+m.Version)
		}
	}
	if len(args) == 3 {
		return nil, fmt.Errorf("%s contains no build information about modules", program)
	}
	out, err := goCommand(ctx, os.TempDir(), args...)
	if err != nil {
		return nil, err
	}
	var all []module
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var m module
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
}

// at returns a path below the root of the repository.
func (o *options) at(names ...string) string {
	return filepath.Join(append([]string{o.root}, names...)...)
}
