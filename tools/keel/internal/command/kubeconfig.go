package command

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"keelson.dev/tools/keel/internal/cluster"
)

// kubeconfig prints the path of the administrator's kubeconfig, or merges it into the user's.
func (e *env) kubeconfig() *cobra.Command {
	var merge bool
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the path of the cluster's kubeconfig, or merge it into yours",
		Example: `  export KUBECONFIG=$(keel kubeconfig)
  keel kubeconfig --merge`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := cluster.Load(e.home)
			if err != nil {
				return err
			}
			if !merge {
				e.say("%s", c.Kubeconfig())
				return nil
			}
			path, err := mergeKubeconfig(c)
			if err != nil {
				return err
			}
			e.say("added the context keelson-%s to %s", c.ID, path)
			return nil
		},
	}
	cmd.Flags().BoolVar(&merge, "merge", false, "merge into $KUBECONFIG or ~/.kube/config and make it the current context")
	return cmd
}

// writeKubeconfig creates HOME/kubeconfig with the administrator's certificate.
func writeKubeconfig(c *cluster.Cluster) error {
	data, err := kubeconfigOf(c.Path("pki", "admin"), "keelson-"+c.ID, "https://"+c.HTTPS())
	if err != nil {
		return err
	}
	return cluster.WriteFile(c.Kubeconfig(), data, 0o600)
}

func mergeKubeconfig(c *cluster.Cluster) (string, error) {
	ours, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		return "", fmt.Errorf("%s: %w; start the cluster with `keel up` first", c.Kubeconfig(), err)
	}
	options := clientcmd.NewDefaultPathOptions()
	user, err := options.GetStartingConfig()
	if err != nil {
		return "", err
	}
	for name, v := range ours.Clusters {
		v.LocationOfOrigin = ""
		user.Clusters[name] = v
	}
	for name, v := range ours.AuthInfos {
		v.LocationOfOrigin = ""
		user.AuthInfos[name] = v
	}
	for name, v := range ours.Contexts {
		v.LocationOfOrigin = ""
		user.Contexts[name] = v
	}
	user.CurrentContext = ours.CurrentContext
	return options.GetDefaultFilename(), clientcmd.ModifyConfig(options, *user, true)
}

// unmergeKubeconfig removes the cluster from the user's kubeconfig, if it is there.
func unmergeKubeconfig(id string) error {
	options := clientcmd.NewDefaultPathOptions()
	user, err := options.GetStartingConfig()
	if err != nil {
		return nil // an unreadable kubeconfig is the user's to repair
	}
	name := "keelson-" + id
	if user.Clusters[name] == nil {
		return nil
	}
	delete(user.Clusters, name)
	delete(user.AuthInfos, name)
	delete(user.Contexts, name)
	if user.CurrentContext == name {
		user.CurrentContext = ""
	}
	return clientcmd.ModifyConfig(options, *user, true)
}
