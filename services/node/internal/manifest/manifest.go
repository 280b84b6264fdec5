// Package manifest reads static pods from a directory: pods that the node runs without
// having been told so by an API server, for instance the control plane's own.
//
// Whoever can write the directory is root on the machine, because a manifest may ask for
// privileged containers and host paths. So the directory, its parents and each file must
// belong to root (or to the user that the node runs as), and must not be writable by group
// or others; otherwise nothing of it is read. Symbolic links are not followed. At most
// maxFiles files of at most maxSize bytes are read.
//
// What cannot be read ends no pod: neither a file that is being written or has a mistake, nor
// a directory whose mode was changed. Only the removal of a file or of the directory does.
//
// The package must never return a pod that refers to an API object, because its mirror in
// the API would give the node access to that object.
package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"keelson.dev/services/node/internal/pod"
)

const (
	// maxFiles is the maximum number of manifests, and maxSize the maximum size of one in
	// bytes.
	maxFiles = 100
	maxSize  = 1 << 20
	// period is the interval at which the directory is looked at. A file is read again only
	// if its size, time, inode or mode has changed.
	period = time.Second
)

// Dir is a directory of manifests, one pod in each file, in YAML or JSON. Files whose names
// begin with a dot are ignored.
type Dir struct {
	// Path is the directory.
	Path string
	// Node is the node's name, which becomes part of the pods' names.
	Node string
}

// file identifies the content of a file as far as its metadata can.
type file struct {
	size, sec, nsec int64
	inode           uint64
	mode, uid       uint32
}

// Run calls set with the pods of the directory: once at first, and then whenever they have
// changed, until ctx ends. A file that cannot be used is logged; the pod that was last read
// from it stays. If the directory cannot be read at first, the pods are nil; those that were
// read earlier stay until it can be read again.
func (d Dir) Run(ctx context.Context, set func([]*corev1.Pod)) error {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	var seen map[string]file
	var pods map[string]*corev1.Pod // by file
	var failed string
	for first := true; ; first = false {
		now, err := d.list()
		if err != nil {
			if text := err.Error(); text != failed {
				slog.ErrorContext(ctx, "static pods were not read", "path", d.Path, "error", err)
				failed = text
			}
		} else {
			failed = ""
		}
		switch {
		case err != nil && first:
			set(nil)
		case err == nil && (seen == nil || !maps.Equal(now, seen)):
			seen = now
			pods = d.read(ctx, slices.Sorted(maps.Keys(now)), pods)
			set(slices.AppendSeq([]*corev1.Pod{}, maps.Values(pods)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// list returns the files of the directory. A directory that does not exist has none.
func (d Dir) list() (map[string]file, error) {
	out := map[string]file{}
	if err := trusted(d.Path); errors.Is(err, os.ErrNotExist) {
		return out, nil
	} else if err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(d.Path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(10 * maxFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // it has just been removed
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if len(out) == maxFiles {
			return nil, fmt.Errorf("%s: more than %d files", d.Path, maxFiles)
		}
		out[name] = file{size: st.Size, sec: st.Mtim.Sec, nsec: st.Mtim.Nsec, inode: st.Ino, mode: st.Mode, uid: st.Uid}
	}
	return out, nil
}

// trusted returns an error if anyone but root or the node's own user can change what a
// directory holds.
func trusted(dir string) error {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return fmt.Errorf("stat %s: %w", at, err)
		}
		sticky := at != filepath.Clean(dir) && info.Mode()&os.ModeSticky != 0
		switch {
		case !info.IsDir():
			return fmt.Errorf("%s: not a directory", at)
		case !owner(st.Uid):
			return fmt.Errorf("%s: belongs to user %d, not to root", at, st.Uid)
		case info.Mode().Perm()&0o022 != 0 && !sticky:
			return fmt.Errorf("%s: group or others may write it (mode %#o): run chmod go-w", at, info.Mode().Perm())
		}
		if at == "/" {
			return nil
		}
	}
}

func owner(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// read reads the pods of the given files. last holds what was read from them before.
func (d Dir) read(ctx context.Context, names []string, last map[string]*corev1.Pod) map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	from := map[string]string{}
	for _, name := range names {
		text, err := d.open(name)
		var p *corev1.Pod
		if err == nil {
			p, err = d.parse(name, text)
		}
		if err == nil && from[pod.Key(p)] != "" {
			err = fmt.Errorf("%s is also the pod of %s", pod.Key(p), from[pod.Key(p)])
		}
		if err != nil {
			p = last[name]
			keeps := p != nil && from[pod.Key(p)] == ""
			slog.ErrorContext(ctx, "static pod was not read", "path", filepath.Join(d.Path, name), "keeps_last", keeps, "error", err)
			if !keeps {
				continue
			}
		}
		from[pod.Key(p)] = name
		out[name] = p
	}
	return out
}

// open reads a file that only root or the node's own user can have written.
func (d Dir) open(name string) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(d.Path, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("is a symbolic link")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("is not a regular file")
	case !owner(st.Uid):
		return nil, fmt.Errorf("belongs to user %d, not to root", st.Uid)
	case st.Mode&0o022 != 0:
		return nil, fmt.Errorf("group or others may write it (mode %#o): run chmod go-w", st.Mode&0o777)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = fmt.Errorf("is larger than %d bytes", maxSize)
	}
	return text, err
}

// parse returns the pod of a manifest, completed as the kubelet completes it: its name ends
// with the node's, and its UID follows from the node, the file and the content, so that a
// changed manifest is another pod.
func (d Dir) parse(name string, text []byte) (*corev1.Pod, error) {
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(text, p); err != nil {
		return nil, fmt.Errorf("not a pod: %w", err)
	}
	if p.APIVersion != "v1" || p.Kind != "Pod" {
		return nil, fmt.Errorf("apiVersion %q, kind %q: expected v1 and Pod", p.APIVersion, p.Kind)
	}
	p.TypeMeta = metav1.TypeMeta{}
	p.Status = corev1.PodStatus{}
	if p.Namespace == "" {
		p.Namespace = metav1.NamespaceDefault
	}
	p.Name += "-" + strings.ToLower(d.Node)
	if err := validate(p); err != nil {
		return nil, err
	}
	content, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	for _, part := range [][]byte{[]byte(d.Node), []byte(name), content} {
		_, _ = fmt.Fprintf(sum, "%d:", len(part))
		_, _ = sum.Write(part)
	}
	hash := hex.EncodeToString(sum.Sum(nil)[:16])
	p.ObjectMeta = metav1.ObjectMeta{
		Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, UID: types.UID(hash),
	}
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[pod.AnnotationHash] = hash
	p.Annotations[pod.AnnotationSource] = pod.SourceFile
	p.Annotations[pod.AnnotationSeen] = time.Now().UTC().Format(time.RFC3339Nano)
	p.Spec.NodeName = d.Node
	// Nothing but its manifest ends a static pod.
	p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	complete(&p.Spec)
	p.Status.Phase = corev1.PodPending
	return p, nil
}
