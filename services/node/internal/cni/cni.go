// Package cni is the pod network of a node: the CNI configuration that the
// container runtime reads, and all around it that the plugins do not do — routes
// to the pods of other nodes, forwarding, masquerading of what leaves the
// cluster, host ports, and getting along with a firewall that drops forwarded
// packets by default (docker's).
//
// Pods hang on point-to-point links (the ptp plugin), not on a bridge: each
// packet of a pod passes the node's IP layer, so that connection tracking sees
// both directions of a connection between two pods of one node. On a bridge the
// answers would take the short way and the caller of a Service would get them
// from an address that it never called, unless br_netfilter is loaded for the
// whole machine.
//
// It must never change routes, rules or tables that it did not make.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	// NetworkName is the network's name in the configuration and in host-local's
	// directory.
	NetworkName = "keelson"
	// fileName sorts before what distributions ship.
	fileName = "10-keelson.conflist"
)

// Config says what the container runtime's CNI configuration is to be.
type Config struct {
	// Dir is where the runtime looks for configurations.
	Dir string
	// DataDir is where host-local keeps the addresses it gave out: one
	// directory per node, also where several nodes share a file system.
	DataDir string
	// PodCIDR is this node's range of pod addresses.
	PodCIDR netip.Prefix
	// MTU of pods' interfaces; 0 leaves the kernel's.
	MTU int
}

// Configure writes the configuration, in one step, if it is not there already.
func Configure(cfg Config) error {
	if !cfg.PodCIDR.IsValid() || !cfg.PodCIDR.Addr().Is4() {
		return fmt.Errorf("cni: pod range must be an IPv4 prefix, got %q", cfg.PodCIDR)
	}
	if cfg.Dir == "" || cfg.DataDir == "" {
		return errors.New("cni: configuration and data directories must be set")
	}
	for _, dir := range []string{cfg.Dir, cfg.DataDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cni: %w", err)
		}
	}
	b, err := json.MarshalIndent(confList(cfg), "", "  ")
	if err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	path := filepath.Join(cfg.Dir, fileName)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
		return nil
	}
	temp := path + ".new" // runtimes read only *.conf, *.conflist and *.json
	if err := os.WriteFile(temp, b, 0o644); err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	return nil
}

type object = map[string]any

func confList(cfg Config) object {
	ptp := object{
		"type":   "ptp",
		"ipMasq": false,
		"ipam": object{
			"type":    "host-local",
			"dataDir": cfg.DataDir,
			"ranges":  [][]object{{{"subnet": cfg.PodCIDR.Masked().String()}}},
			"routes":  []object{{"dst": "0.0.0.0/0"}},
		},
	}
	if cfg.MTU > 0 {
		ptp["mtu"] = cfg.MTU
	}
	return object{
		"cniVersion": "1.0.0",
		"name":       NetworkName,
		"plugins":    []object{ptp},
	}
}

// Reclaim frees the addresses that host-local still holds for sandboxes that no
// longer exist (the machine lost power, say), and returns how many. live names
// the sandboxes of the runtime; ask it before the call, with no pod starting.
func Reclaim(dataDir string, live map[string]bool) (int, error) {
	dir := filepath.Join(dataDir, NetworkName)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cni: %w", err)
	}
	freed := 0
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		path := filepath.Join(dir, e.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return freed, fmt.Errorf("cni: %w", err)
		}
		id, _, _ := strings.Cut(string(b), "\n")
		if live[strings.TrimSpace(id)] {
			continue
		}
		if err := os.Remove(path); err != nil {
			return freed, fmt.Errorf("cni: %w", err)
		}
		freed++
	}
	return freed, nil
}
