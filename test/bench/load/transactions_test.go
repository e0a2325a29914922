package load

import (
	"testing"
	"time"

	"github.com/varve-io/varve/test/servers"
)

// TestTransactions runs transactions of both kinds on Varve: the run itself checks that a read_committed consumer sees each of them once.
func TestTransactions(t *testing.T) {
	target := Target{Bootstrap: servers.Varve(t, servers.VarveOptions{}).Address}
	for name, copied := range map[string]bool{"produced": false, "copied": true} {
		t.Run(name, func(t *testing.T) {
			result, err := RunTransactions(t.Context(), TransactionsConfig{
				Target: target, Producers: 2, Records: 10, RecordBytes: 100, Partitions: 3, Duration: time.Second, Copy: copied,
			})
			if err != nil {
				t.Fatal(err)
			}
			if result.Count == 0 || result.Records < result.Count || result.Version != 2 {
				t.Errorf("%+v", result)
			}
			if result.Commit.Count != result.Count || result.EndToEnd.Count != result.Count || result.EndToEnd.P50 <= 0 || result.Commit.P50 <= 0 {
				t.Errorf("latencies of %d transactions: commit %+v, end to end %+v", result.Count, result.Commit, result.EndToEnd)
			}
		})
	}
}
