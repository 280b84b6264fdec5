package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/runtime"
)

// image loads archives into the nodes.
func (e *env) image() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Images of the cluster's nodes"}
	cmd.AddCommand(&cobra.Command{
		Use:   "load FILE…",
		Short: "Load image archives (docker save's or OCI's form) into every node, also those to come",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MinimumNArgs(1)(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, files []string) error {
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			bin, err := programs()
			if err != nil {
				return err
			}
			progs, err := runtime.Find(filepath.Join(bin, "runtime"))
			if err != nil {
				return err
			}
			for _, file := range files {
				kept, err := keep(c, file)
				if err != nil {
					return err
				}
				errs := make([]error, len(c.Nodes))
				names := make([][]string, len(c.Nodes))
				var wg sync.WaitGroup
				for i, n := range c.Nodes {
					wg.Go(func() {
						if errs[i] = runtime.WaitReady(cmd.Context(), runtime.Socket(c, n.Name)); errs[i] != nil {
							return
						}
						if names[i], errs[i] = runtime.Import(cmd.Context(), progs, c, n.Name, kept); errs[i] == nil {
							errs[i] = os.WriteFile(c.Path("nodes", n.Name, "containerd", "imported-"+filepath.Base(kept)), nil, 0o600)
						}
					})
				}
				wg.Wait()
				if err := errors.Join(errs...); err != nil {
					return errors.Join(err, os.Remove(kept))
				}
				if len(names) > 0 {
					e.say("loaded %s into %d nodes", strings.Join(names[0], ", "), len(c.Nodes))
				}
			}
			return nil
		},
	})
	return cmd
}

// keep copies an archive into the cluster's home, for nodes that come later.
func keep(c *cluster.Cluster, file string) (string, error) {
	in, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a file", file)
	}
	path := c.Path("images", strings.TrimSuffix(filepath.Base(file), ".tar")+".tar")
	if same, err := filepath.Abs(file); err == nil && same == path {
		return path, nil
	}
	out, err := os.CreateTemp(c.Path("images"), ".new-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(out.Name(), path)
}
