package nodeipam

import (
	"net/netip"

	"github.com/spf13/pflag"
)

// Flags adds the controller's flags to fs.
func Flags(fs *pflag.FlagSet) *Config {
	c := &Config{}
	fs.TextVar(&c.ClusterCIDR, "cluster-cidr", netip.MustParsePrefix("10.244.0.0/16"), "range of pod addresses")
	fs.IntVar(&c.NodeMaskSize, "node-cidr-mask-size", 24, "size of a node's range of pod addresses")
	return c
}
