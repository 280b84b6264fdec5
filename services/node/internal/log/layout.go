package log

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Layout defines where the logs of a node's pods are, as log collectors expect them:
//
//	<Pods>/<namespace>_<pod>_<uid>/<container>/<restart>.log
//	<Containers>/<pod>_<namespace>_<container>-<id>.log, a link to it
//
// All nodes of one machine share Pods and Containers. A node records its own directories in
// its Ledger: a link for each of its directories in Pods, created before the directory and
// removed after it. Beside it, <Ledger>.containers has a link to each directory that the node has
// used as Containers. So the logs of pods that were removed while the node was down are found,
// and so are all logs of a node that is deleted, also if Pods and Containers are other
// directories by then. Before there was a ledger, its path held the log directories themselves.
type Layout struct {
	Pods, Containers, Ledger string
}

// maxLinkName is the maximum length of a file name in bytes. Longer link names are
// truncated before their suffix, as the kubelet does.
const maxLinkName = 255

const logSuffix = ".log"

// Folder creates the directory of a pod's logs and, unless container is "", that
// container's directory in it.
func (l Layout) Folder(pod, container string) error {
	if err := os.MkdirAll(l.Ledger, 0o755); err != nil {
		return err
	}
	if l.Ledger != l.Pods {
		err := os.Symlink(filepath.Join(l.Pods, pod), filepath.Join(l.Ledger, pod))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := l.rememberContainers(); err != nil {
		return err
	}
	if err := os.MkdirAll(l.Pods, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(l.Pods)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range []string{pod, filepath.Join(pod, container)} {
		if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if info, err := root.Lstat(name); err != nil || !info.IsDir() {
			return errors.Join(err, fmt.Errorf("%s: not a directory", filepath.Join(l.Pods, name)))
		}
	}
	return nil
}

// used is the directory that holds a link for each directory that has been used as Containers.
func (l Layout) used() string { return l.Ledger + ".containers" }

// rememberContainers records that Containers is used.
func (l Layout) rememberContainers() error {
	if l.Containers == "" {
		return nil // no links are made
	}
	if err := os.MkdirAll(l.used(), 0o755); err != nil {
		return err
	}
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(l.Containers))
	err := os.Symlink(l.Containers, filepath.Join(l.used(), fmt.Sprintf("%x", sum.Sum(nil))))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// containers returns all directories that have been used as Containers.
func (l Layout) containers() []string {
	out := []string{l.Containers}
	entries, _ := os.ReadDir(l.used())
	for _, e := range entries {
		if dir, err := os.Readlink(filepath.Join(l.used(), e.Name())); err == nil && dir != l.Containers {
			out = append(out, dir)
		}
	}
	return out
}

// moved returns the directory that the ledger has for a pod's logs, if that is not in Pods.
func (l Layout) moved(name string) (dir string, ok bool) {
	dir, err := os.Readlink(filepath.Join(l.Ledger, name))
	return dir, err == nil && filepath.IsAbs(dir) && filepath.Base(dir) == name && filepath.Dir(dir) != filepath.Clean(l.Pods)
}

func linkName(pod, namespace, container, id string) string {
	name := pod + "_" + namespace + "_" + container + "-" + id
	return name[:min(len(name), maxLinkName-len(logSuffix))] + logSuffix
}

// Link creates the link to an instance's log.
func (l Layout) Link(pod, namespace, container, id, target string) error {
	if err := os.MkdirAll(l.Containers, 0o755); err != nil {
		return err
	}
	name := filepath.Join(l.Containers, linkName(pod, namespace, container, id))
	if have, err := os.Readlink(name); err == nil && have == target {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, name)
}

// Unlink removes the link to an instance's log.
func (l Layout) Unlink(pod, namespace, container, id string) {
	_ = os.Remove(filepath.Join(l.Containers, linkName(pod, namespace, container, id)))
}

// Folders returns the names of the directories in Pods that are this node's.
func (l Layout) Folders() []string {
	var out []string
	entries, _ := os.ReadDir(l.Ledger)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// UIDs returns the UIDs of the pods in the ledger.
func (l Layout) UIDs() []string {
	var out []string
	entries, _ := os.ReadDir(l.Ledger)
	for _, e := range entries {
		if i := strings.LastIndexByte(e.Name(), '_'); i >= 0 && i+1 < len(e.Name()) {
			out = append(out, e.Name()[i+1:])
		}
	}
	return out
}

// Remove removes all logs of a pod, whatever the pod was called, and the links to them. It
// follows no symbolic links.
func (l Layout) Remove(uid string) error {
	if uid == "" || strings.ContainsAny(uid, "/\x00") {
		return fmt.Errorf("remove logs: pod uid %q is not valid", uid)
	}
	// Remove the ledger entry last, so that an interrupted removal is found again.
	dirs := []string{l.Pods, l.Ledger}
	var folders []string
	for _, dir := range dirs {
		names, err := ending(dir, "_"+uid)
		if err != nil {
			return err
		}
		for _, name := range names {
			if target, ok := l.moved(name); ok && dir == l.Ledger {
				folders = append(folders, target)
			}
			folders = append(folders, filepath.Join(dir, name))
		}
	}
	if len(folders) == 0 {
		return nil
	}
	if err := l.unlinkBelow(folders); err != nil {
		return err
	}
	for _, folder := range folders {
		root, err := os.OpenRoot(filepath.Dir(folder))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = root.RemoveAll(filepath.Base(folder))
		_ = root.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Clear removes the logs of all pods in the ledger, and the shared directories if they are
// empty after that.
func (l Layout) Clear() error {
	var all []error
	shared := append(l.containers(), l.Pods)
	for _, name := range l.Folders() {
		if dir, ok := l.moved(name); ok && !slices.Contains(shared, filepath.Dir(dir)) {
			shared = append(shared, filepath.Dir(dir))
		}
	}
	for _, uid := range l.UIDs() {
		all = append(all, l.Remove(uid))
	}
	for _, dir := range shared {
		_ = os.Remove(dir) // fails unless the directory is empty
	}
	return errors.Join(errors.Join(all...), os.RemoveAll(l.used()))
}

// ending returns the names in a directory that end with suffix. It returns none if the
// directory does not exist.
func ending(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// unlinkBelow removes the links that point into one of the folders.
func (l Layout) unlinkBelow(folders []string) error {
	for _, dir := range l.containers() {
		if err := unlink(dir, folders); err != nil {
			return err
		}
	}
	return nil
}

// unlink removes the links of one directory that point into one of the folders.
func unlink(dir string, folders []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		target, err := os.Readlink(name)
		if err != nil || !slices.ContainsFunc(folders, func(f string) bool { return strings.HasPrefix(target, f+"/") }) {
			continue
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
