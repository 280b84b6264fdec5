package nodelifecycle

import (
	"errors"
	"time"

	"github.com/spf13/pflag"
)

// Flags adds the controller's flags to fs.
func Flags(fs *pflag.FlagSet) *Config {
	c := &Config{}
	fs.DurationVar(&c.Grace, "node-monitor-grace-period", 40*time.Second, "longest time without a heartbeat before a node counts as unreachable; a node's Lease may state a shorter one")
	fs.DurationVar(&c.StartGrace, "node-startup-grace-period", time.Minute, "the same for a node that has not reported yet")
	return c
}

// Check returns an error if a grace period is not positive.
func (c *Config) Check() error {
	if c.Grace <= 0 || c.StartGrace <= 0 {
		return errors.New("--node-monitor-grace-period and --node-startup-grace-period must be positive")
	}
	return nil
}
