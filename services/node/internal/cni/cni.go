// Package cni is the pod network of a node. It writes the CNI configuration that the
// container runtime reads, and does everything that the plugins do not: routes to other
// nodes' pods, forwarding, masquerading of traffic that leaves the cluster, host ports, and
// coexistence with a firewall that drops forwarded packets by default, such as Docker's.
//
// Pods are attached by point-to-point links (the ptp plugin) rather than to a bridge. Every
// packet of a pod passes through the node's IP layer, so connection tracking sees both
// directions of a connection between two pods of the same node. On a bridge, replies would
// bypass the IP layer, and the client of a Service would get them from an address that it
// never connected to, unless br_netfilter were loaded for the whole machine.
//
// It must never change routes, rules or tables that it did not create.
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
	// NetworkName is the name of the network in the CNI configuration and of its directory
	// in host-local's data directory.
	NetworkName = "keelson"
	// fileName sorts before the configurations that distributions ship.
	fileName = "10-keelson.conflist"
)

// Config describes the CNI configuration.
type Config struct {
	// Dir is the directory that the runtime reads configurations from.
	Dir string
	// DataDir is the directory in which host-local records assigned addresses. Each node
	// needs its own, even if several nodes share a file system.
	DataDir string
	// PodCIDR is this node's range of pod addresses.
	PodCIDR netip.Prefix
	// MTU is the MTU of pods' interfaces; 0 keeps the kernel's default.
	MTU int
}

// Configure writes the configuration atomically, unless it is unchanged.
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

// Reclaim releases the addresses that host-local still holds for sandboxes that no longer
// exist, for example after a power failure, and returns how many. live contains the IDs of
// the runtime's sandboxes, listed before the call while no pod was starting.
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
