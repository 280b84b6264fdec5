package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// grant lists the rights that a service of a compose file may have beyond those of an
// unprivileged container.
type grant struct {
	add []string
	// unconfined means without the engine's seccomp and AppArmor profiles.
	unconfined bool
}

// grants are all exceptions except for nodes. Services that are not listed get none.
// SECURITY.md explains each.
var grants = map[string]grant{
	"setup": {add: []string{"CHOWN", "DAC_OVERRIDE", "FOWNER"}},
}

// nodeGrant is the grant of a node: what it needs to run containers, and what Kubernetes gives
// to every container, because pods could not have it otherwise.
var nodeGrant = grant{
	add: []string{
		"SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE",
		"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID",
		"SETPCAP", "SETUID", "SYS_CHROOT",
	},
	unconfined: true,
}

var nodeName = regexp.MustCompile(`^node-[0-9]+$`)

// composeService is the part of a service's configuration that grants rights.
type composeService struct {
	Image       string   `json:"image"`
	Privileged  bool     `json:"privileged"`
	CapAdd      []string `json:"cap_add"`
	CapDrop     []string `json:"cap_drop"`
	SecurityOpt []string `json:"security_opt"`
	Devices     []any    `json:"devices"`
	NetworkMode string   `json:"network_mode"`
	PID         string   `json:"pid"`
	IPC         string   `json:"ipc"`
	UsernsMode  string   `json:"userns_mode"`
	Cgroup      string   `json:"cgroup"`
	Volumes     []any    `json:"volumes"`
}

// capabilities checks the rights that compose files grant to containers.
func capabilities(_ context.Context, o *options) (string, []string, error) {
	files, err := filepath.Glob(o.at("deploy", "compose", "*.yaml"))
	if err != nil {
		return "", nil, err
	}
	count := 0
	var faults []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", nil, err
		}
		n, found, err := composeFaults(data)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", file, err)
		}
		count += n
		for _, f := range found {
			faults = append(faults, filepath.Base(file)+": "+f)
		}
	}
	if count == 0 {
		return "", nil, fmt.Errorf("no service in %s", o.at("deploy", "compose"))
	}
	return fmt.Sprintf("%d services of %d compose files", count, len(files)), faults, nil
}

// composeFaults checks the services of a compose file. A service without an image overrides one
// of another file, and may only remove rights.
func composeFaults(data []byte) (count int, faults []string, err error) {
	var file struct {
		Services map[string]composeService `json:"services"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		return 0, nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(file.Services)) {
		s, may := file.Services[name], grants[name]
		if nodeName.MatchString(name) {
			may = nodeGrant
		}
		fault := func(format string, args ...any) {
			faults = append(faults, name+" "+fmt.Sprintf(format, args...))
		}
		if s.Privileged {
			fault("is privileged")
		}
		for _, c := range s.CapAdd {
			if !slices.Contains(may.add, strings.TrimPrefix(c, "CAP_")) {
				fault("adds the capability %s", c)
			}
		}
		if s.Image != "" && !slices.Contains(s.CapDrop, "ALL") {
			fault("keeps the engine's default capabilities: cap_drop: [ALL] is missing")
		}
		for _, option := range s.SecurityOpt {
			if strings.HasSuffix(strings.ReplaceAll(option, "=", ":"), ":unconfined") && !may.unconfined {
				fault("has the option %s", option)
			}
		}
		if s.Image != "" && !may.unconfined && !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			fault("may gain privileges: security_opt no-new-privileges:true is missing")
		}
		if len(s.Devices) > 0 {
			fault("has devices of the host")
		}
		for what, value := range map[string]string{"network": s.NetworkMode, "pid": s.PID, "ipc": s.IPC, "user": s.UsernsMode, "cgroup": s.Cgroup} {
			if value == "host" {
				fault("uses the host's %s namespace", what)
			}
		}
		for _, volume := range s.Volumes {
			source := fmt.Sprint(volume)
			if m, ok := volume.(map[string]any); ok {
				source = fmt.Sprint(m["source"])
			}
			// The directory of the images is below that of the file. All other sources are
			// named volumes.
			if strings.HasPrefix(source, "/") || strings.HasPrefix(source, "..") || strings.HasPrefix(source, "~") {
				fault("mounts %s of the host", source)
			}
		}
	}
	return len(file.Services), faults, nil
}
