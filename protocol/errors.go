package protocol

import "fmt"

// ErrorCode is an error as the Kafka protocol numbers it
// (org.apache.kafka.common.protocol.Errors).
type ErrorCode int16

// The error codes that a Kafka 4 broker may answer.
const (
	UnknownServerError                 ErrorCode = -1
	None                               ErrorCode = 0
	OffsetOutOfRange                   ErrorCode = 1
	CorruptMessage                     ErrorCode = 2
	UnknownTopicOrPartition            ErrorCode = 3
	InvalidFetchSize                   ErrorCode = 4
	LeaderNotAvailable                 ErrorCode = 5
	NotLeaderOrFollower                ErrorCode = 6
	RequestTimedOut                    ErrorCode = 7
	BrokerNotAvailable                 ErrorCode = 8
	ReplicaNotAvailable                ErrorCode = 9
	MessageTooLarge                    ErrorCode = 10
	StaleControllerEpoch               ErrorCode = 11
	OffsetMetadataTooLarge             ErrorCode = 12
	NetworkException                   ErrorCode = 13
	CoordinatorLoadInProgress          ErrorCode = 14
	CoordinatorNotAvailable            ErrorCode = 15
	NotCoordinator                     ErrorCode = 16
	InvalidTopicException              ErrorCode = 17
	RecordListTooLarge                 ErrorCode = 18
	NotEnoughReplicas                  ErrorCode = 19
	NotEnoughReplicasAfterAppend       ErrorCode = 20
	InvalidRequiredAcks                ErrorCode = 21
	IllegalGeneration                  ErrorCode = 22
	InconsistentGroupProtocol          ErrorCode = 23
	InvalidGroupID                     ErrorCode = 24
	UnknownMemberID                    ErrorCode = 25
	InvalidSessionTimeout              ErrorCode = 26
	RebalanceInProgress                ErrorCode = 27
	InvalidCommitOffsetSize            ErrorCode = 28
	TopicAuthorizationFailed           ErrorCode = 29
	GroupAuthorizationFailed           ErrorCode = 30
	ClusterAuthorizationFailed         ErrorCode = 31
	InvalidTimestamp                   ErrorCode = 32
	UnsupportedSaslMechanism           ErrorCode = 33
	IllegalSaslState                   ErrorCode = 34
	UnsupportedVersion                 ErrorCode = 35
	TopicAlreadyExists                 ErrorCode = 36
	InvalidPartitions                  ErrorCode = 37
	InvalidReplicationFactor           ErrorCode = 38
	InvalidReplicaAssignment           ErrorCode = 39
	InvalidConfig                      ErrorCode = 40
	NotController                      ErrorCode = 41
	InvalidRequest                     ErrorCode = 42
	UnsupportedForMessageFormat        ErrorCode = 43
	PolicyViolation                    ErrorCode = 44
	OutOfOrderSequenceNumber           ErrorCode = 45
	DuplicateSequenceNumber            ErrorCode = 46
	InvalidProducerEpoch               ErrorCode = 47
	InvalidTxnState                    ErrorCode = 48
	InvalidProducerIDMapping           ErrorCode = 49
	InvalidTransactionTimeout          ErrorCode = 50
	ConcurrentTransactions             ErrorCode = 51
	TransactionCoordinatorFenced       ErrorCode = 52
	TransactionalIDAuthorizationFailed ErrorCode = 53
	SecurityDisabled                   ErrorCode = 54
	OperationNotAttempted              ErrorCode = 55
	KafkaStorageError                  ErrorCode = 56
	LogDirNotFound                     ErrorCode = 57
	SaslAuthenticationFailed           ErrorCode = 58
	UnknownProducerID                  ErrorCode = 59
	ReassignmentInProgress             ErrorCode = 60
	DelegationTokenAuthDisabled        ErrorCode = 61
	DelegationTokenNotFound            ErrorCode = 62
	DelegationTokenOwnerMismatch       ErrorCode = 63
	DelegationTokenRequestNotAllowed   ErrorCode = 64
	DelegationTokenAuthorizationFailed ErrorCode = 65
	DelegationTokenExpired             ErrorCode = 66
	InvalidPrincipalType               ErrorCode = 67
	NonEmptyGroup                      ErrorCode = 68
	GroupIDNotFound                    ErrorCode = 69
	FetchSessionIDNotFound             ErrorCode = 70
	InvalidFetchSessionEpoch           ErrorCode = 71
	ListenerNotFound                   ErrorCode = 72
	TopicDeletionDisabled              ErrorCode = 73
	FencedLeaderEpoch                  ErrorCode = 74
	UnknownLeaderEpoch                 ErrorCode = 75
	UnsupportedCompressionType         ErrorCode = 76
	StaleBrokerEpoch                   ErrorCode = 77
	OffsetNotAvailable                 ErrorCode = 78
	MemberIDRequired                   ErrorCode = 79
	PreferredLeaderNotAvailable        ErrorCode = 80
	GroupMaxSizeReached                ErrorCode = 81
	FencedInstanceID                   ErrorCode = 82
	EligibleLeadersNotAvailable        ErrorCode = 83
	ElectionNotNeeded                  ErrorCode = 84
	NoReassignmentInProgress           ErrorCode = 85
	GroupSubscribedToTopic             ErrorCode = 86
	InvalidRecord                      ErrorCode = 87
	UnstableOffsetCommit               ErrorCode = 88
	ThrottlingQuotaExceeded            ErrorCode = 89
	ProducerFenced                     ErrorCode = 90
	ResourceNotFound                   ErrorCode = 91
	DuplicateResource                  ErrorCode = 92
	UnacceptableCredential             ErrorCode = 93
	InconsistentVoterSet               ErrorCode = 94
	InvalidUpdateVersion               ErrorCode = 95
	FeatureUpdateFailed                ErrorCode = 96
	PrincipalDeserializationFailure    ErrorCode = 97
	SnapshotNotFound                   ErrorCode = 98
	PositionOutOfRange                 ErrorCode = 99
	UnknownTopicID                     ErrorCode = 100
	DuplicateBrokerRegistration        ErrorCode = 101
	BrokerIDNotRegistered              ErrorCode = 102
	InconsistentTopicID                ErrorCode = 103
	InconsistentClusterID              ErrorCode = 104
	TransactionalIDNotFound            ErrorCode = 105
	FetchSessionTopicIDError           ErrorCode = 106
	IneligibleReplica                  ErrorCode = 107
	NewLeaderElected                   ErrorCode = 108
	OffsetMovedToTieredStorage         ErrorCode = 109
	FencedMemberEpoch                  ErrorCode = 110
	UnreleasedInstanceID               ErrorCode = 111
	UnsupportedAssignor                ErrorCode = 112
	StaleMemberEpoch                   ErrorCode = 113
	MismatchedEndpointType             ErrorCode = 114
	UnsupportedEndpointType            ErrorCode = 115
	UnknownControllerID                ErrorCode = 116
	UnknownSubscriptionID              ErrorCode = 117
	TelemetryTooLarge                  ErrorCode = 118
	InvalidRegistration                ErrorCode = 119
	TransactionAbortable               ErrorCode = 120
	InvalidRecordState                 ErrorCode = 121
	ShareSessionNotFound               ErrorCode = 122
	InvalidShareSessionEpoch           ErrorCode = 123
	FencedStateEpoch                   ErrorCode = 124
	InvalidVoterKey                    ErrorCode = 125
	DuplicateVoter                     ErrorCode = 126
	VoterNotFound                      ErrorCode = 127
	InvalidRegularExpression           ErrorCode = 128
	RebootstrapRequired                ErrorCode = 129
	StreamsInvalidTopology             ErrorCode = 130
	StreamsInvalidTopologyEpoch        ErrorCode = 131
	StreamsTopologyFenced              ErrorCode = 132
	ShareSessionLimitReached           ErrorCode = 133
)

// errorCodes describes code c at index c+1.
var errorCodes = [...]struct {
	name      string
	message   string
	retriable bool
}{
	UnknownServerError + 1:                 {"UNKNOWN_SERVER_ERROR", "the server met an unexpected error", false},
	None + 1:                               {"NONE", "no error", false},
	OffsetOutOfRange + 1:                   {"OFFSET_OUT_OF_RANGE", "the offset is outside of the partition's log", false},
	CorruptMessage + 1:                     {"CORRUPT_MESSAGE", "the batch fails its checksum, has an impossible size or is otherwise corrupt", true},
	UnknownTopicOrPartition + 1:            {"UNKNOWN_TOPIC_OR_PARTITION", "this server does not host this topic-partition", true},
	InvalidFetchSize + 1:                   {"INVALID_FETCH_SIZE", "the fetch size is invalid", false},
	LeaderNotAvailable + 1:                 {"LEADER_NOT_AVAILABLE", "the partition has no leader at the moment", true},
	NotLeaderOrFollower + 1:                {"NOT_LEADER_OR_FOLLOWER", "this broker is not the partition's leader or replica", true},
	RequestTimedOut + 1:                    {"REQUEST_TIMED_OUT", "the request timed out", true},
	BrokerNotAvailable + 1:                 {"BROKER_NOT_AVAILABLE", "the broker is not available", false},
	ReplicaNotAvailable + 1:                {"REPLICA_NOT_AVAILABLE", "the replica is not available", true},
	MessageTooLarge + 1:                    {"MESSAGE_TOO_LARGE", "the message is larger than the server accepts", false},
	StaleControllerEpoch + 1:               {"STALE_CONTROLLER_EPOCH", "the controller has moved to another broker", false},
	OffsetMetadataTooLarge + 1:             {"OFFSET_METADATA_TOO_LARGE", "the offset's metadata is too large", false},
	NetworkException + 1:                   {"NETWORK_EXCEPTION", "the server disconnected before it answered", true},
	CoordinatorLoadInProgress + 1:          {"COORDINATOR_LOAD_IN_PROGRESS", "the coordinator is loading", true},
	CoordinatorNotAvailable + 1:            {"COORDINATOR_NOT_AVAILABLE", "the coordinator is not available", true},
	NotCoordinator + 1:                     {"NOT_COORDINATOR", "this is not the coordinator", true},
	InvalidTopicException + 1:              {"INVALID_TOPIC_EXCEPTION", "the topic is invalid for this operation", false},
	RecordListTooLarge + 1:                 {"RECORD_LIST_TOO_LARGE", "the batch is larger than a segment", false},
	NotEnoughReplicas + 1:                  {"NOT_ENOUGH_REPLICAS", "there are fewer in-sync replicas than required", true},
	NotEnoughReplicasAfterAppend + 1:       {"NOT_ENOUGH_REPLICAS_AFTER_APPEND", "the records were written, but to fewer in-sync replicas than required", true},
	InvalidRequiredAcks + 1:                {"INVALID_REQUIRED_ACKS", "the value of acks is invalid", false},
	IllegalGeneration + 1:                  {"ILLEGAL_GENERATION", "the group generation is not the current one", false},
	InconsistentGroupProtocol + 1:          {"INCONSISTENT_GROUP_PROTOCOL", "the member's protocols do not fit those of the group", false},
	InvalidGroupID + 1:                     {"INVALID_GROUP_ID", "the group id is invalid", false},
	UnknownMemberID + 1:                    {"UNKNOWN_MEMBER_ID", "the coordinator does not know this member", false},
	InvalidSessionTimeout + 1:              {"INVALID_SESSION_TIMEOUT", "the session timeout is outside of the range that the broker allows", false},
	RebalanceInProgress + 1:                {"REBALANCE_IN_PROGRESS", "the group is rebalancing: rejoin", false},
	InvalidCommitOffsetSize + 1:            {"INVALID_COMMIT_OFFSET_SIZE", "the size of the committed offset data is invalid", false},
	TopicAuthorizationFailed + 1:           {"TOPIC_AUTHORIZATION_FAILED", "not authorized for the topic", false},
	GroupAuthorizationFailed + 1:           {"GROUP_AUTHORIZATION_FAILED", "not authorized for the group", false},
	ClusterAuthorizationFailed + 1:         {"CLUSTER_AUTHORIZATION_FAILED", "not authorized for the cluster", false},
	InvalidTimestamp + 1:                   {"INVALID_TIMESTAMP", "the timestamp is out of the acceptable range", false},
	UnsupportedSaslMechanism + 1:           {"UNSUPPORTED_SASL_MECHANISM", "the SASL mechanism is not supported", false},
	IllegalSaslState + 1:                   {"ILLEGAL_SASL_STATE", "the request does not fit the state of the SASL exchange", false},
	UnsupportedVersion + 1:                 {"UNSUPPORTED_VERSION", "the version of the API is not supported", false},
	TopicAlreadyExists + 1:                 {"TOPIC_ALREADY_EXISTS", "a topic of this name exists already", false},
	InvalidPartitions + 1:                  {"INVALID_PARTITIONS", "the number of partitions is invalid", false},
	InvalidReplicationFactor + 1:           {"INVALID_REPLICATION_FACTOR", "the replication factor is invalid", false},
	InvalidReplicaAssignment + 1:           {"INVALID_REPLICA_ASSIGNMENT", "the replica assignment is invalid", false},
	InvalidConfig + 1:                      {"INVALID_CONFIG", "the configuration is invalid", false},
	NotController + 1:                      {"NOT_CONTROLLER", "this is not the controller", true},
	InvalidRequest + 1:                     {"INVALID_REQUEST", "the request is malformed or makes no sense", false},
	UnsupportedForMessageFormat + 1:        {"UNSUPPORTED_FOR_MESSAGE_FORMAT", "the message format does not support the request", false},
	PolicyViolation + 1:                    {"POLICY_VIOLATION", "the request violates a policy", false},
	OutOfOrderSequenceNumber + 1:           {"OUT_OF_ORDER_SEQUENCE_NUMBER", "the producer's sequence number is out of order", false},
	DuplicateSequenceNumber + 1:            {"DUPLICATE_SEQUENCE_NUMBER", "the producer's sequence number was seen before", false},
	InvalidProducerEpoch + 1:               {"INVALID_PRODUCER_EPOCH", "the producer's epoch is stale", false},
	InvalidTxnState + 1:                    {"INVALID_TXN_STATE", "the transaction is not in a state that allows this", false},
	InvalidProducerIDMapping + 1:           {"INVALID_PRODUCER_ID_MAPPING", "the producer id does not belong to the transactional id", false},
	InvalidTransactionTimeout + 1:          {"INVALID_TRANSACTION_TIMEOUT", "the transaction timeout is larger than the broker allows", false},
	ConcurrentTransactions + 1:             {"CONCURRENT_TRANSACTIONS", "another operation on the transaction is in progress", true},
	TransactionCoordinatorFenced + 1:       {"TRANSACTION_COORDINATOR_FENCED", "the transaction coordinator that sent the marker is no longer current", false},
	TransactionalIDAuthorizationFailed + 1: {"TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "not authorized for the transactional id", false},
	SecurityDisabled + 1:                   {"SECURITY_DISABLED", "security features are disabled", false},
	OperationNotAttempted + 1:              {"OPERATION_NOT_ATTEMPTED", "the operation was not attempted", false},
	KafkaStorageError + 1:                  {"KAFKA_STORAGE_ERROR", "the storage of the log failed", true},
	LogDirNotFound + 1:                     {"LOG_DIR_NOT_FOUND", "the log directory is not known", false},
	SaslAuthenticationFailed + 1:           {"SASL_AUTHENTICATION_FAILED", "SASL authentication failed", false},
	UnknownProducerID + 1:                  {"UNKNOWN_PRODUCER_ID", "the producer id is not known", false},
	ReassignmentInProgress + 1:             {"REASSIGNMENT_IN_PROGRESS", "a reassignment is in progress", false},
	DelegationTokenAuthDisabled + 1:        {"DELEGATION_TOKEN_AUTH_DISABLED", "delegation tokens are not enabled", false},
	DelegationTokenNotFound + 1:            {"DELEGATION_TOKEN_NOT_FOUND", "the delegation token is not known", false},
	DelegationTokenOwnerMismatch + 1:       {"DELEGATION_TOKEN_OWNER_MISMATCH", "the principal is not an owner or renewer of the token", false},
	DelegationTokenRequestNotAllowed + 1:   {"DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", "delegation tokens may not be requested over this channel", false},
	DelegationTokenAuthorizationFailed + 1: {"DELEGATION_TOKEN_AUTHORIZATION_FAILED", "not authorized for the delegation token", false},
	DelegationTokenExpired + 1:             {"DELEGATION_TOKEN_EXPIRED", "the delegation token has expired", false},
	InvalidPrincipalType + 1:               {"INVALID_PRINCIPAL_TYPE", "the principal type is not supported", false},
	NonEmptyGroup + 1:                      {"NON_EMPTY_GROUP", "the group is not empty", false},
	GroupIDNotFound + 1:                    {"GROUP_ID_NOT_FOUND", "the group does not exist", false},
	FetchSessionIDNotFound + 1:             {"FETCH_SESSION_ID_NOT_FOUND", "the fetch session is not known", true},
	InvalidFetchSessionEpoch + 1:           {"INVALID_FETCH_SESSION_EPOCH", "the fetch session epoch is invalid", true},
	ListenerNotFound + 1:                   {"LISTENER_NOT_FOUND", "the leader has no listener of the name the request came by", true},
	TopicDeletionDisabled + 1:              {"TOPIC_DELETION_DISABLED", "topic deletion is disabled", false},
	FencedLeaderEpoch + 1:                  {"FENCED_LEADER_EPOCH", "the leader epoch is older than the broker's", true},
	UnknownLeaderEpoch + 1:                 {"UNKNOWN_LEADER_EPOCH", "the leader epoch is newer than the broker's", true},
	UnsupportedCompressionType + 1:         {"UNSUPPORTED_COMPRESSION_TYPE", "the compression type is not supported here", false},
	StaleBrokerEpoch + 1:                   {"STALE_BROKER_EPOCH", "the broker epoch has changed", false},
	OffsetNotAvailable + 1:                 {"OFFSET_NOT_AVAILABLE", "the leader's high watermark has not caught up yet", true},
	MemberIDRequired + 1:                   {"MEMBER_ID_REQUIRED", "the member needs an id before it can join: use the one given", false},
	PreferredLeaderNotAvailable + 1:        {"PREFERRED_LEADER_NOT_AVAILABLE", "the preferred leader is not available", true},
	GroupMaxSizeReached + 1:                {"GROUP_MAX_SIZE_REACHED", "the group has reached its maximum size", false},
	FencedInstanceID + 1:                   {"FENCED_INSTANCE_ID", "another member has taken over this group.instance.id", false},
	EligibleLeadersNotAvailable + 1:        {"ELIGIBLE_LEADERS_NOT_AVAILABLE", "no eligible leader is available", true},
	ElectionNotNeeded + 1:                  {"ELECTION_NOT_NEEDED", "the partition needs no election", true},
	NoReassignmentInProgress + 1:           {"NO_REASSIGNMENT_IN_PROGRESS", "no reassignment is in progress", false},
	GroupSubscribedToTopic + 1:             {"GROUP_SUBSCRIBED_TO_TOPIC", "the group is subscribed to the topic", false},
	InvalidRecord + 1:                      {"INVALID_RECORD", "a record failed validation and was rejected", false},
	UnstableOffsetCommit + 1:               {"UNSTABLE_OFFSET_COMMIT", "offsets of an open transaction are not decided yet", true},
	ThrottlingQuotaExceeded + 1:            {"THROTTLING_QUOTA_EXCEEDED", "the quota is exceeded", true},
	ProducerFenced + 1:                     {"PRODUCER_FENCED", "a newer producer with the same transactional id has fenced this one", false},
	ResourceNotFound + 1:                   {"RESOURCE_NOT_FOUND", "the resource does not exist", false},
	DuplicateResource + 1:                  {"DUPLICATE_RESOURCE", "the resource is named twice", false},
	UnacceptableCredential + 1:             {"UNACCEPTABLE_CREDENTIAL", "the credential does not meet the criteria", false},
	InconsistentVoterSet + 1:               {"INCONSISTENT_VOTER_SET", "the sender or the recipient is not among the expected voters", false},
	InvalidUpdateVersion + 1:               {"INVALID_UPDATE_VERSION", "the update version is invalid", false},
	FeatureUpdateFailed + 1:                {"FEATURE_UPDATE_FAILED", "the features could not be updated", false},
	PrincipalDeserializationFailure + 1:    {"PRINCIPAL_DESERIALIZATION_FAILURE", "the principal could not be read", false},
	SnapshotNotFound + 1:                   {"SNAPSHOT_NOT_FOUND", "the snapshot does not exist", false},
	PositionOutOfRange + 1:                 {"POSITION_OUT_OF_RANGE", "the position is outside of the snapshot", false},
	UnknownTopicID + 1:                     {"UNKNOWN_TOPIC_ID", "this server does not host this topic id", true},
	DuplicateBrokerRegistration + 1:        {"DUPLICATE_BROKER_REGISTRATION", "the broker id is in use", false},
	BrokerIDNotRegistered + 1:              {"BROKER_ID_NOT_REGISTERED", "the broker id is not registered", false},
	InconsistentTopicID + 1:                {"INCONSISTENT_TOPIC_ID", "the topic id does not match the log's", true},
	InconsistentClusterID + 1:              {"INCONSISTENT_CLUSTER_ID", "the cluster id does not match", false},
	TransactionalIDNotFound + 1:            {"TRANSACTIONAL_ID_NOT_FOUND", "the transactional id is not known", false},
	FetchSessionTopicIDError + 1:           {"FETCH_SESSION_TOPIC_ID_ERROR", "the fetch session mixes topic ids and names", true},
	IneligibleReplica + 1:                  {"INELIGIBLE_REPLICA", "a replica is not eligible for the in-sync set", false},
	NewLeaderElected + 1:                   {"NEW_LEADER_ELECTED", "a new leader was elected", false},
	OffsetMovedToTieredStorage + 1:         {"OFFSET_MOVED_TO_TIERED_STORAGE", "the offset has moved to tiered storage", false},
	FencedMemberEpoch + 1:                  {"FENCED_MEMBER_EPOCH", "the member epoch is fenced: give up all partitions and rejoin", false},
	UnreleasedInstanceID + 1:               {"UNRELEASED_INSTANCE_ID", "another member still holds this instance id", false},
	UnsupportedAssignor + 1:                {"UNSUPPORTED_ASSIGNOR", "the assignor is not supported", false},
	StaleMemberEpoch + 1:                   {"STALE_MEMBER_EPOCH", "the member epoch is stale", false},
	MismatchedEndpointType + 1:             {"MISMATCHED_ENDPOINT_TYPE", "the request went to an endpoint of the wrong type", false},
	UnsupportedEndpointType + 1:            {"UNSUPPORTED_ENDPOINT_TYPE", "the endpoint type is not supported", false},
	UnknownControllerID + 1:                {"UNKNOWN_CONTROLLER_ID", "the controller id is not known", false},
	UnknownSubscriptionID + 1:              {"UNKNOWN_SUBSCRIPTION_ID", "the telemetry subscription is not known", false},
	TelemetryTooLarge + 1:                  {"TELEMETRY_TOO_LARGE", "the telemetry is larger than the broker accepts", false},
	InvalidRegistration + 1:                {"INVALID_REGISTRATION", "the broker registration is invalid", false},
	TransactionAbortable + 1:               {"TRANSACTION_ABORTABLE", "the transaction failed and must be aborted", false},
	InvalidRecordState + 1:                 {"INVALID_RECORD_STATE", "the record's state does not allow the acknowledgement", false},
	ShareSessionNotFound + 1:               {"SHARE_SESSION_NOT_FOUND", "the share session is not known", true},
	InvalidShareSessionEpoch + 1:           {"INVALID_SHARE_SESSION_EPOCH", "the share session epoch is invalid", true},
	FencedStateEpoch + 1:                   {"FENCED_STATE_EPOCH", "the state epoch does not match", false},
	InvalidVoterKey + 1:                    {"INVALID_VOTER_KEY", "the voter key does not match the replica's", false},
	DuplicateVoter + 1:                     {"DUPLICATE_VOTER", "the voter is in the set already", false},
	VoterNotFound + 1:                      {"VOTER_NOT_FOUND", "the voter is not in the set", false},
	InvalidRegularExpression + 1:           {"INVALID_REGULAR_EXPRESSION", "the regular expression is invalid", false},
	RebootstrapRequired + 1:                {"REBOOTSTRAP_REQUIRED", "the client's metadata is stale: bootstrap again", false},
	StreamsInvalidTopology + 1:             {"STREAMS_INVALID_TOPOLOGY", "the topology is invalid", false},
	StreamsInvalidTopologyEpoch + 1:        {"STREAMS_INVALID_TOPOLOGY_EPOCH", "the topology epoch is invalid", false},
	StreamsTopologyFenced + 1:              {"STREAMS_TOPOLOGY_FENCED", "the topology epoch is outdated", false},
	ShareSessionLimitReached + 1:           {"SHARE_SESSION_LIMIT_REACHED", "no more share sessions are possible", true},
}

// Known reports whether the code is one of the above.
func (c ErrorCode) Known() bool {
	return c >= UnknownServerError && int(c)+1 < len(errorCodes)
}

// String returns the code's name as Kafka writes it, such as CORRUPT_MESSAGE.
func (c ErrorCode) String() string {
	if !c.Known() {
		return fmt.Sprintf("ERROR_%d", int16(c))
	}
	return errorCodes[c+1].name
}

// Message returns a sentence that explains the code to a person.
func (c ErrorCode) Message() string {
	if !c.Known() {
		return "an error code that is not known"
	}
	return errorCodes[c+1].message
}

// Retriable reports whether Kafka's own clients try again on this code
// (RetriableException).
func (c ErrorCode) Retriable() bool {
	return c.Known() && errorCodes[c+1].retriable
}

// Err returns the code as an error with its default message, and nil for None.
func (c ErrorCode) Err() error {
	if c == None {
		return nil
	}
	return &Error{Code: c}
}

// Errorf returns an [*Error] of this code with a message of its own. The code
// must not be None.
func (c ErrorCode) Errorf(format string, args ...any) error {
	return &Error{Code: c, Message: fmt.Sprintf(format, args...)}
}
