package coordinator

import (
	"os"
	"strings"
	"testing"
)

func TestKeysUndo(t *testing.T) {
	for _, group := range []string{"g", "a/b", "%2F", "sp ace", "é", ".", ".."} {
		got, err := ParseKeyGroup(KeyGroup(group))
		if err != nil || got != group {
			t.Errorf("group %q comes back as %q, %v", group, got, err)
		}
		g, topic, block, err := ParseKeyOffsets(KeyOffsets(group, "to.pic_1", 17))
		if err != nil || g != group || topic != "to.pic_1" || block != 17 {
			t.Errorf("offsets of %q come back as %q, %q, %d, %v", group, g, topic, block, err)
		}
	}
	log, number, err := ParseKeyCommit(KeyCommit(0xabc, 0x12))
	if err != nil || log != 0xabc || number != 0x12 {
		t.Errorf("commit comes back as %v, %d, %v", log, number, err)
	}
	for _, bad := range []string{"", "meta/commits/", "meta/commits/1", "meta/commits/x/1", "meta/commits/1/x"} {
		if _, _, err := ParseKeyCommit(bad); err == nil {
			t.Errorf("commit key %q was accepted", bad)
		}
	}
}

// TestGroupsDoNotNest holds that the offsets of one group are never under the prefix of another's.
func TestGroupsDoNotNest(t *testing.T) {
	groups := []string{"a", "a/b", "a/", "ab", "a%2Fb"}
	for _, x := range groups {
		for _, y := range groups {
			if x != y && strings.HasPrefix(KeyOffsets(y, "t", 0), PrefixGroupOffsets(x)) {
				t.Errorf("offsets of %q lie under the prefix of %q", y, x)
			}
		}
	}
}

// TestKeysAreDocumented holds KEYS.md to the keys that there are.
func TestKeysAreDocumented(t *testing.T) {
	text, err := os.ReadFile("KEYS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{
		KeyCluster, PrefixAgents, PrefixTopics, PrefixShards, PrefixCommits, PrefixLogs, PrefixUnflushed, PrefixLoads, PrefixUsage, KeyController, PrefixMoves, PrefixStores, PrefixWrites, PrefixGroups,
		PrefixOffsets, KeyNextNode, KeyNextLog, KeyNextPID, KeyLastCopy, KeyPastLog, KeyRestore,
	} {
		if !strings.Contains(string(text), "`"+key) {
			t.Errorf("KEYS.md does not name %s", key)
		}
	}
}
