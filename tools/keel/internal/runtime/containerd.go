// Package runtime sets up a node's containerd: its configuration, its initial images, and the
// removal of its pods. It must never touch a containerd that is not the cluster's, so it uses
// only sockets below the cluster's home.
package runtime

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/tools/keel/internal/cluster"
)

// PauseImage is the image of pods' sandboxes. It is imported into every node.
const PauseImage = "keelson.dev/pause:1"

// Programs are the paths of containerd and the programs that it needs.
type Programs struct {
	Containerd, Ctr, Runc string
	// Dir contains containerd and its shim, and is first in containerd's PATH.
	Dir string
	// CNI is the directory of the CNI plugins.
	CNI string
	// LogLevel is containerd's log level. The default is "warn".
	LogLevel string
}

// Find looks for the programs in dirs, then in the PATH.
func Find(dirs ...string) (Programs, error) {
	p := Programs{}
	for _, w := range []struct {
		name string
		into *string
	}{{"containerd", &p.Containerd}, {"ctr", &p.Ctr}, {"runc", &p.Runc}} {
		path, err := find(w.name, dirs)
		if err != nil {
			return p, err
		}
		*w.into = path
	}
	p.Dir = filepath.Dir(p.Containerd)
	for _, dir := range []string{filepath.Join(p.Dir, "cni"), "/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			p.CNI = dir
			return p, nil
		}
	}
	return p, errors.New("no CNI plugins in /usr/lib/cni or /opt/cni/bin: install them with `make runtime` (or Debian's package containernetworking-plugins)")
}

func find(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("no %s in %s or the PATH: build it with `make runtime`", name, strings.Join(dirs, ", "))
	}
	return path, nil
}

// Socket returns the path of the socket of a node's containerd.
func Socket(c *cluster.Cluster, node string) string {
	return c.Path("nodes", node, "containerd", "containerd.sock")
}

var config = template.Must(template.New("config").Parse(`version = 3
root = "{{.Dir}}/root"
state = "{{.Dir}}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri", "io.containerd.grpc.v1.sandbox-controllers",
]

[grpc]
  address = "{{.Dir}}/containerd.sock"

[debug]
  address = ""
  level = "{{.LogLevel}}"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{{.Snapshotter}}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{{.Pause}}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{{.Certs}}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = {{.RestrictOOM}}
  # With the rest of what a pod leaves, where it can be found.
  netns_mounts_under_state_dir = true
  enable_selinux = false
  disable_apparmor = {{.NoAppArmor}}
  # Ranges that pods may bind without privileges, as Kubernetes' nodes allow.
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{{.CNIBin}}"]
    conf_dir = "{{.CNIConf}}"
    max_conf_num = 1
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "{{.Runc}}"
        Root = "{{.Dir}}/state/runc"
        SystemdCgroup = false
`))

// Configure writes the configuration of a node's containerd and returns the path of its file.
func Configure(c *cluster.Cluster, p Programs, node string) (string, error) {
	dir := c.Path("nodes", node, "containerd")
	conf := c.Path("nodes", node, "cni")
	certs := c.Path("nodes", node, "certs.d")
	for _, d := range []string{dir, conf, certs} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return "", err
		}
	}
	var out bytes.Buffer
	err := config.Execute(&out, map[string]any{
		"Dir": dir, "CNIBin": p.CNI, "CNIConf": conf, "Certs": certs, "Runc": p.Runc, "Pause": PauseImage, "LogLevel": cmp.Or(p.LogLevel, "warn"),
		"Snapshotter": snapshotter(dir), "RestrictOOM": !mayRaiseOOMScore(), "NoAppArmor": !appArmor(),
	})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "config.toml")
	return path, cluster.WriteFile(path, out.Bytes(), 0o644)
}

// mayRaiseOOMScore reports whether this process has CAP_SYS_RESOURCE (bit 24), without which it
// cannot give a process a lower oom_score_adj than its own.
func mayRaiseOOMScore() bool {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var caps uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%x", &caps); err == nil {
				return caps&(1<<24) != 0
			}
		}
	}
	return false
}

func appArmor() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(data), "Y")
}

// pinned is a label that keeps an image from being removed when disk space is short (cri-api's
// Image.pinned), because images from archives cannot be pulled again.
const pinned = "io.cri-containerd.pinned=pinned"

// Import loads an image archive, in docker's or OCI's format, into a node and returns the names
// of its images.
func Import(ctx context.Context, p Programs, c *cluster.Cluster, node, file string) ([]string, error) {
	cmd := exec.CommandContext(ctx, p.Ctr, "--address", Socket(c, node), "--namespace", "k8s.io", "images", "import", "--local", "--label", pinned, "--snapshotter", snapshotter(c.Path("nodes", node, "containerd")), file)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: import %s: %w: %s", node, file, err, bytes.TrimSpace(problems.Bytes()))
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		// "unpacking NAME (DIGEST)...done"
		if f := strings.Fields(line); len(f) > 1 && f[0] == "unpacking" {
			names = append(names, f[1])
		}
	}
	return names, nil
}

// StopSandboxes stops and removes all pods of a containerd.
func StopSandboxes(ctx context.Context, socket string) error {
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := cri.NewRuntimeServiceClient(conn)
	list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list.Items {
		_, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.Id})
		if err == nil {
			_, err = client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.Id})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
