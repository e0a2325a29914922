// Package compat runs real Kafka clients against a broker and writes down what works.
//
//	go test ./test/compat                  # against Varve, built from the working tree; writes RESULTS.md
//	go test ./test/compat -target kafka    # against Apache Kafka, the oracle; writes RESULTS.kafka.md
//	go test ./test/compat -binary PROGRAM  # against a varve that was built before
//	go test ./test/compat -run 'TestClients/clients/sarama/'
//
// What is missing of the clients is installed first (test/tools/install). A failure on Varve of something that passes on
// Kafka is Varve's; a cell that says n/a names what the client lacks.
//
// # Drivers
//
// A driver is a small program around one client library, in go/, java/, python/ or js/. They all speak this command line,
// exit with 0 when the verb succeeded, and end with a message and another status when it did not:
//
//	produce --topic T --codec none|gzip|snappy|lz4|zstd --idempotent true|false
//	        Sends the records on standard input, one "key TAB value" a line, with acks=all, and waits for the answers.
//	consume --topic T,T... --max N --isolation read_committed|read_uncommitted
//	        Prints the N records that partition 0 of these topics hold, as many of each, from their start.
//	resume  --topic T --group G --max N
//	        Joins the group, prints N records, commits the offset after the last one, leaves.
//	member  --topic T --group G
//	        Joins the group and prints its assignment whenever that changes, and each record, committing them, until
//	        standard input ends; then it leaves.
//	seek    --topic T --timestamp MILLISECONDS --max N --isolation read_committed|read_uncommitted
//	        Looks up the offset at a time in partition 0 and prints N records from there.
//	admin   --topic T
//	        Creates the topic with two partitions, describes it and its configuration, alters a configuration, adds two
//	        partitions, deletes the topic, and prints what it sees after each step.
//
//	transact --id ID --timeout MILLISECONDS
//	        Starts a transactional producer, prints that it is ready, and takes the steps that standard input says, each a line
//	        with tabs between its parts, answering each, until standard input ends:
//	            begin | flush | commit | abort
//	            send    TOPIC  PARTITION  KEY  VALUE
//	            offset  GROUP  TOPIC  PARTITION  OFFSET  [MEMBER  GENERATION, which only the Java driver takes]
//	copy    --topic T --to T --group G --session MILLISECONDS --id ID --timeout MILLISECONDS --max N --stall KEY
//	        Joins the group as a reader of committed records and copies each record into the same partition of the other topic,
//	        up to N in a transaction, with the group's offsets, until standard input ends. It aborts every third transaction
//	        and copies its records again, and prints the records of those that it has committed. In the transaction of a
//	        record of that key it says that it has stalled, and stands still for good.
//
// Verbs that a client cannot do, it need not have. Each also takes --bootstrap ADDRESS. Events are lines on standard output
// with tabs between their parts:
//
//	record  PARTITION  OFFSET  KEY  VALUE
//	assigned  PARTITION,PARTITION...
//	ready | stalled
//	done | refused  THE CLIENT'S NAME OF THE ERROR
//
// kcat and Apache Kafka's command-line classes cannot be given such a frame; kcat_test.go and console_test.go translate.
//
// # Compaction
//
// Two applications keep their state in topics with cleanup.policy=compact, on a broker of their own (compaction_test.go): a
// worker of Kafka Connect, and Kafka Streams with stores (java/Table.java). They change it many times and are killed, the
// broker is killed and starts again, and only when no key is left twice in any of these topics do they go on, with nothing
// else to go by.
//
// A schema registry is not among them. Of those that keep schemas in compacted topics, Confluent's is not in Maven Central, nor
// is the Kafka storage of Apicurio Registry 2. Apicurio Registry 3 is; it needs Java 21, and makes its topics with
// cleanup.policy=delete.
package compat
