// Package hostnet gives a cluster's nodes a network on this machine: a bridge of
// the host's, and a network namespace with one address for each node. Everything
// it makes carries the cluster's id in its name, and Remove leaves nothing
// behind.
//
// Nodes have no route out of the machine unless the cluster asks for egress, and
// the host answers 'unreachable' for the pods' and Services' ranges, so that a
// packet no rule catches goes nowhere.
//
// It must never change a link, route or rule that it did not make.
package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/supervise"
)

// Ensure makes what is missing.
func Ensure(c *cluster.Cluster) error {
	bridge, err := ensureBridge(c)
	if err != nil {
		return err
	}
	for i, n := range c.Nodes {
		if err := ensureNode(c, bridge, i, n); err != nil {
			return fmt.Errorf("network of %s: %w", n.Name, err)
		}
	}
	if err := errors.Join(BlockRanges(c), ensureForwarding(c)); err != nil {
		return err
	}
	if c.Egress {
		return ensureEgress(c)
	}
	return nil
}

func ensureBridge(c *cluster.Cluster) (netlink.Link, error) {
	link, err := netlink.LinkByName(c.Bridge())
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: c.Bridge()}})
		if err == nil {
			link, err = netlink.LinkByName(c.Bridge())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", c.Bridge(), err)
	}
	cidrs := []string{c.NodeCIDR()}
	for _, m := range c.Members {
		if m.IP != c.Gateway() {
			cidrs = append(cidrs, m.IP+"/24")
		}
	}
	for _, cidr := range cidrs {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return nil, err
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return nil, fmt.Errorf("address %s of %s: %w", cidr, c.Bridge(), err)
		}
	}
	return link, netlink.LinkSetUp(link)
}

// veth is the host's end of a node's link; 15 characters at most.
func veth(c *cluster.Cluster, i int) string { return fmt.Sprintf("kv%s-%d", c.ID, i) }

func ensureNode(c *cluster.Cluster, bridge netlink.Link, i int, n cluster.Node) error {
	ns, err := ensureNamespace(c.Namespace(n.Name))
	if err != nil {
		return err
	}
	defer ns.Close()
	host := veth(c, i)
	if _, err := netlink.LinkByName(host); errors.As(err, &netlink.LinkNotFoundError{}) {
		pair := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: host, MasterIndex: bridge.Attrs().Index},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(int(ns)),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	link, err := netlink.LinkByName(host)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(n.IP + "/24")
	if err != nil {
		return err
	}
	if err := errors.Join(h.LinkSetUp(lo), h.AddrReplace(eth, addr), h.LinkSetUp(eth)); err != nil {
		return err
	}
	if c.Egress {
		return h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(c.Gateway())})
	}
	return nil
}

func ensureNamespace(name string) (netns.NsHandle, error) {
	if ns, err := netns.GetFromName(name); err == nil {
		return ns, nil
	}
	type result struct {
		ns  netns.NsHandle
		err error
	}
	ch := make(chan result, 1)
	go func() {
		// NewNamed moves this thread into the new namespace: it is thrown away.
		lockThread()
		ns, err := netns.NewNamed(name)
		ch <- result{ns, err}
	}()
	r := <-ch
	if r.err != nil {
		return r.ns, fmt.Errorf("network namespace %s: %w", name, r.err)
	}
	return r.ns, nil
}

// BlockRanges answers 'unreachable' for the cluster's ranges, which mean nothing
// outside the nodes' namespaces.
func BlockRanges(c *cluster.Cluster) error {
	return Block(c.ClusterCIDR, c.ServiceCIDR, c.LoadBalancerCIDR())
}

// Block answers 'unreachable' for ranges that no other route leads to.
func Block(cidrs ...string) error {
	for _, cidr := range cidrs {
		_, dst, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		if err != nil {
			return err
		}
		if len(routes) > 0 {
			continue
		}
		err = netlink.RouteAdd(&netlink.Route{Dst: dst, Type: syscall.RTN_UNREACHABLE, Priority: blockPriority})
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("unreachable route for %s: %w", cidr, err)
		}
	}
	return nil
}

// blockPriority marks our unreachable routes, and lets any other route win.
const blockPriority = 4_278_198_272

func ensureEgress(c *cluster.Cluster) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	table := "keelson-" + c.ID
	rules := fmt.Sprintf(`add table ip %[1]s
delete table ip %[1]s
table ip %[1]s {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.89.%[2]d.0/24 oifname != "%[3]s" masquerade
	}
}
`, table, c.Subnet, c.Bridge())
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// Remove takes away everything that Ensure made. Other clusters on this machine
// keep theirs: the shared unreachable routes go with the last of them.
func Remove(c *cluster.Cluster) error {
	var errs []error
	for _, ns := range Namespaces(c) {
		if err := netns.DeleteNamed(ns); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("network namespace %s: %w", ns, err))
		}
	}
	links, err := netlink.LinkList()
	errs = append(errs, err)
	others := false
	for _, l := range links {
		name := l.Attrs().Name
		switch {
		case name == c.Bridge() || strings.HasPrefix(name, "kv"+c.ID+"-"):
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, syscall.ENODEV) {
				errs = append(errs, fmt.Errorf("link %s: %w", name, err))
			}
		case strings.HasPrefix(name, "ks") && l.Type() == "bridge":
			others = true
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	errs = append(errs, err)
	_, lb, err := net.ParseCIDR(c.LoadBalancerCIDR())
	errs = append(errs, err)
	for _, r := range routes {
		ours := r.Type == syscall.RTN_UNREACHABLE && r.Priority == blockPriority
		inLB := r.Dst != nil && lb != nil && lb.Contains(r.Dst.IP)
		if ours && (inLB || !others) || inLB {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, fmt.Errorf("route %s: %w", r.Dst, err))
			}
		}
	}
	errs = append(errs, removeForwarding(c))
	if c.Egress {
		if out, err := exec.Command("nft", "delete", "table", "ip", "keelson-"+c.ID).CombinedOutput(); err != nil && !strings.Contains(string(out), "No such file") {
			errs = append(errs, fmt.Errorf("nft: %w: %s", err, out))
		}
	}
	return errors.Join(errs...)
}

// Namespaces are the names of the cluster's namespaces that exist.
func Namespaces(c *cluster.Cluster) []string {
	matches, _ := filepath.Glob("/var/run/netns/" + c.Namespace("*"))
	for i, m := range matches {
		matches[i] = filepath.Base(m)
	}
	return matches
}

// Within runs f in the network of a node.
func Within(c *cluster.Cluster, node string, f func() error) error {
	return supervise.InNamespace(c.Namespace(node), f)
}
