package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/runtime"
)

// imageTime bounds one request about images to a node's runtime.
const imageTime = 30 * time.Second

// image loads archives into the nodes, and lists and removes images.
func (e *env) image() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Load, list and remove the images of the cluster's nodes"}
	cmd.AddCommand(e.imageLoad(), e.imageList(), e.imageRemove())
	return cmd
}

func atLeastOne(cmd *cobra.Command, args []string) error {
	if err := cobra.MinimumNArgs(1)(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

func (e *env) imageLoad() *cobra.Command {
	return &cobra.Command{
		Use:   "load FILE…",
		Short: "Load image archives (from docker save or in OCI format, .tar or .tar.gz) into all nodes, including later ones",
		Example: `  keel image load shop.tar
  docker save shop:2 | keel image load -`,
		Args: atLeastOne,
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
				kept, err := keep(c, file, cmd.InOrStdin())
				if err != nil {
					return err
				}
				var mu sync.Mutex
				var names []string
				err = onNodes(c, func(node string) error {
					if err := runtime.WaitReady(cmd.Context(), runtime.Socket(c, node)); err != nil {
						return err
					}
					loaded, err := runtime.Import(cmd.Context(), progs, c, node, kept)
					if err != nil {
						return withoutNoise(err)
					}
					mu.Lock()
					names = loaded
					mu.Unlock()
					return os.WriteFile(c.Path("nodes", node, "containerd", "imported-"+filepath.Base(kept)), nil, 0o600)
				})
				if err != nil {
					return errors.Join(fmt.Errorf("load %s: %w", file, err), os.Remove(kept))
				}
				if len(c.Nodes) == 0 {
					e.say("kept %s for later nodes: there are none now", file)
					continue
				}
				e.say("loaded %s into %s", strings.Join(names, ", "), counted(len(c.Nodes), "node"))
			}
			return nil
		},
	}
}

// onNodes calls do for all nodes in parallel. Errors with the same text on several nodes are
// merged.
func onNodes(c *cluster.Cluster, do func(node string) error) error {
	errs := make([]error, len(c.Nodes))
	var wg sync.WaitGroup
	for i, n := range c.Nodes {
		wg.Go(func() { errs[i] = do(n.Name) })
	}
	wg.Wait()
	var reasons []string
	where := map[string][]string{}
	for i, err := range errs {
		if err == nil {
			continue
		}
		text := strings.TrimPrefix(err.Error(), c.Nodes[i].Name+": ")
		if where[text] == nil {
			reasons = append(reasons, text)
		}
		where[text] = append(where[text], c.Nodes[i].Name)
	}
	var out []error
	for _, text := range reasons {
		if nodes := where[text]; len(nodes) < len(c.Nodes) {
			text = strings.Join(nodes, ", ") + ": " + text
		}
		out = append(out, errors.New(text))
	}
	return errors.Join(out...)
}

// withoutNoise reduces the output of a runtime's client to the reason of a failure: the last
// line, without the names of programs and their exit codes.
func withoutNoise(err error) error {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	text := lines[len(lines)-1]
	for _, before := range []string{"exit status 1: ", "ctr: "} {
		if _, rest, ok := strings.Cut(text, before); ok {
			text = rest
		}
	}
	return errors.New(text)
}

// withImages calls do with clients of a node's runtime.
func withImages(ctx context.Context, c *cluster.Cluster, node string, do func(context.Context, cri.ImageServiceClient, cri.RuntimeServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, imageTime)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+runtime.Socket(c, node), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := do(ctx, cri.NewImageServiceClient(conn), cri.NewRuntimeServiceClient(conn)); err != nil {
		return errors.New(status.Convert(err).Message())
	}
	return nil
}

func (e *env) imageList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the images on the nodes",
		Example: `  keel image list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			images, err := imagesOf(cmd.Context(), c)
			if err != nil {
				return err
			}
			rows := [][]string{{"IMAGE", "ID", "SIZE", "NODES"}}
			for _, name := range slices.Sorted(maps.Keys(images)) {
				i := images[name]
				nodes := "all"
				if len(i.nodes) < len(c.Nodes) {
					slices.Sort(i.nodes)
					nodes = strings.Join(i.nodes, ",")
				}
				rows = append(rows, []string{name, i.id, i.size, nodes})
			}
			return table(e.out, rows)
		},
	}
}

// nodeImage is an image and the nodes that have it.
type nodeImage struct {
	id, size string
	nodes    []string
}

// imagesOf returns the images on a cluster's nodes by name. If there is an error, it returns
// those of the nodes that answered.
func imagesOf(ctx context.Context, c *cluster.Cluster) (map[string]*nodeImage, error) {
	var mu sync.Mutex
	images := map[string]*nodeImage{}
	err := onNodes(c, func(node string) error {
		return withImages(ctx, c, node, func(ctx context.Context, s cri.ImageServiceClient, _ cri.RuntimeServiceClient) error {
			list, err := s.ListImages(ctx, &cri.ListImagesRequest{})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, i := range list.Images {
				names := i.RepoTags
				if len(names) == 0 {
					names = i.RepoDigests
				}
				for _, name := range names {
					if images[name] == nil {
						id := strings.TrimPrefix(i.Id, "sha256:")
						images[name] = &nodeImage{id: id[:min(12, len(id))], size: fmt.Sprintf("%.1f MB", float64(i.Size)/1e6)}
					}
					images[name].nodes = append(images[name].nodes, node)
				}
			}
			return nil
		})
	})
	return images, err
}

func (e *env) imageRemove() *cobra.Command {
	return &cobra.Command{
		Use:               "rm IMAGE…",
		Short:             "Remove images from all nodes, and the archives that they were loaded from; images in use are refused",
		Example:           `  keel image rm shop:2`,
		Args:              atLeastOne,
		ValidArgsFunction: e.imageNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			var names []string
			for _, a := range args {
				if reference(a) == runtime.PauseImage {
					return fmt.Errorf("%s is the image of all pod sandboxes and cannot be removed", a)
				}
				names = append(names, reference(a))
			}
			archives, err := archivesOf(c, names)
			if err != nil {
				return err
			}
			found := make([]bool, len(names))
			var mu sync.Mutex
			if err := onNodes(c, func(node string) error {
				return withImages(cmd.Context(), c, node, func(ctx context.Context, s cri.ImageServiceClient, r cri.RuntimeServiceClient) error {
					for i, name := range names {
						there, err := imageUnused(ctx, s, r, name)
						if err != nil {
							return err
						}
						mu.Lock()
						found[i] = found[i] || there
						mu.Unlock()
					}
					return nil
				})
			}); err != nil {
				return err
			}
			for i, there := range found {
				if !there && len(archives) == 0 {
					return fmt.Errorf("no node has the image %s: see `keel image list`", args[i])
				}
			}
			// Remove the archives first, so that a node that starts meanwhile does not load
			// them.
			for _, a := range archives {
				if err := os.Remove(a); err != nil {
					return err
				}
			}
			if err := onNodes(c, func(node string) error {
				for _, a := range archives {
					if err := os.Remove(c.Path("nodes", node, "containerd", "imported-"+filepath.Base(a))); err != nil && !errors.Is(err, os.ErrNotExist) {
						return err
					}
				}
				return withImages(cmd.Context(), c, node, func(ctx context.Context, s cri.ImageServiceClient, _ cri.RuntimeServiceClient) error {
					for _, name := range names {
						if _, err := s.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}}); err != nil {
							return err
						}
					}
					return nil
				})
			}); err != nil {
				return err
			}
			e.say("removed %s from %s", strings.Join(args, ", "), counted(len(c.Nodes), "node"))
			return nil
		},
	}
}

// imageUnused reports whether a node has an image. It returns an error if a container of the
// node uses it.
func imageUnused(ctx context.Context, s cri.ImageServiceClient, r cri.RuntimeServiceClient, name string) (there bool, err error) {
	st, err := s.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil || st.Image == nil {
		return false, err
	}
	list, err := r.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return true, err
	}
	for _, c := range list.Containers {
		if c.ImageRef == st.Image.Id || c.ImageId == st.Image.Id {
			return true, fmt.Errorf("image %s is used by container %s of pod %s/%s", name, c.Metadata.GetName(),
				c.Labels["io.kubernetes.pod.namespace"], c.Labels["io.kubernetes.pod.name"])
		}
	}
	return true, nil
}
